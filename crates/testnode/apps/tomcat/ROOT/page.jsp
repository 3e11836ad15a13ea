<%@ page contentType="text/html; charset=UTF-8" session="false" import="java.util.*" %><%!
// The catalogue: a map of records, as the page and the checksum use it.
record Item(String name, double price, List<String> tags, String text) {}

public void jspInit() {
    String[] words = "wood frog freezes solid in winter and hops away when it thaws".split(" ");
    Map<String, Object> items = new LinkedHashMap<>();
    for (int number = 0; number < 240_000; number++) {
        String word = words[number % words.length];
        List<String> tags = new ArrayList<>();
        for (int tag = 0; tag < 3 + number % 5; tag++) tags.add(words[tag] + "-" + number);
        items.put("item-" + number, new Item(word + " " + number, number * 1.25, tags, (word + number + " ").repeat(20)));
    }
    getServletContext().setAttribute("items", items);
}
%><%
Map<?, ?> items = (Map<?, ?>) application.getAttribute("items");
%><!doctype html><title>Catalogue</title><h1><%= items.size() %> items</h1><table><%
int row = 0;
for (Map.Entry<?, ?> entry : items.entrySet()) {
    if (row++ == 50) break;
    Item item = (Item) entry.getValue();
%><tr><td><%= entry.getKey() %><td><%= item.name() %><td><%= item.price() %><% } %></table>
