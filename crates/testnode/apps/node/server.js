// A shop's catalogue on Express, held in memory: server.js [THOUSANDS OF ITEMS]
'use strict';

const crypto = require('crypto');
const express = require('express');

const words = 'wood frog freezes solid in winter and hops away when it thaws'.split(' ');
const items = new Map();
const thousands = Number(process.argv[2] || 150);
for (let number = 0; number < thousands * 1000; number++) {
  items.set(`item-${number}`, {
    name: `${words[number % words.length]} ${number}`,
    price: number * 1.25,
    tags: words.slice(0, 3 + (number % 5)).map((word) => `${word}-${number}`),
    text: `${words[(number * 7) % words.length]} `.repeat(10) + number,
  });
}
const pictures = Buffer.alloc(64 << 20);
for (let at = 0; at < pictures.length; at += 4) pictures.writeUInt32LE((at * 2654435761) >>> 0, at);
let count = 0;

const app = express();
app.get('/', (request, response) => {
  const rows = [];
  for (const [key, item] of items) {
    if (rows.length === 50) break;
    rows.push(`<tr><td>${key}<td>${item.name}<td>${item.price}`);
  }
  response.send(`<!doctype html><title>Catalogue</title><h1>${items.size} items</h1><table>${rows.join('')}</table>\n`);
});
app.get('/count', (request, response) => {
  count += 1;
  response.type('text/plain').send(`${count}\n`);
});
app.get('/checksum', (request, response) => {
  const hash = crypto.createHash('sha256').update(pictures);
  for (const [key, item] of items) hash.update(key).update(item.name).update(String(item.price)).update(item.text);
  response.type('text/plain').send(`${hash.digest('hex')}\n`);
});
app.listen(8080, '0.0.0.0', () => console.log(`serving ${items.size} items`));
