// stock: a Node service with express, as it comes: it closes a connection that was idle
// for five seconds.
'use strict';
const express = require('express');

const app = express();
app.get('/stock/:id', (req, res) => {
  res.type('text').send('x'.repeat(Number(req.query.size || 200)));
});
app.get('/health', (req, res) => res.send('ok'));
app.listen(Number(process.env.PORT || 3000), '::');
