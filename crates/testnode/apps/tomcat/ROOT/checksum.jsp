<%@ page contentType="text/plain; charset=UTF-8" session="false" trimDirectiveWhitespaces="true" import="java.util.*" %><%
java.util.zip.CRC32 sum = new java.util.zip.CRC32();
for (Map.Entry<?, ?> entry : ((Map<?, ?>) application.getAttribute("items")).entrySet())
    sum.update((entry.getKey() + " " + entry.getValue()).getBytes("UTF-8"));
%><%= String.format("%08x", sum.getValue()) %>
