// api: a Node service with express. It asks orders over HTTP and price over gRPC.
'use strict';
const express = require('express');
const grpc = require('@grpc/grpc-js');

const app = express();
const price = new grpc.Client('price:50051', grpc.credentials.createInsecure());
const bytes = (b) => b;

function quote(sleep) {
  return new Promise((resolve, reject) => {
    price.makeUnaryRequest('/shop.Price/Get', bytes, bytes, Buffer.from(String(sleep)), new grpc.Metadata(), { deadline: Date.now() + 15000 },
      (err, value) => (err ? reject(err) : resolve(value)));
  });
}

// The query goes on to orders. timeout is the time in ms after which api gives up, via
// the host that api asks, such as a proxy in front of orders.
app.get('/order/:id', async (req, res) => {
  const query = new URLSearchParams(req.query);
  const options = {};
  if (query.has('timeout')) options.signal = AbortSignal.timeout(Number(query.get('timeout')));
  try {
    const answer = await fetch(`http://${query.get('via') || 'orders:8000'}/orders/${req.params.id}?${query}`, options);
    const text = await answer.text();
    res.status(answer.status).type('text').send(text);
  } catch (err) {
    res.status(502).send(String(err.cause || err));
  }
});

// calls is how many calls are made at a time on one connection, sleep the ms that
// price sleeps in each.
app.get('/price/:id', async (req, res) => {
  try {
    await Promise.all(Array.from({ length: Number(req.query.calls || 1) }, () => quote(req.query.sleep || 0)));
    res.send('ok');
  } catch (err) {
    res.status(502).send(String(err));
  }
});

app.get('/report', async (req, res) => {
  try {
    const answer = await fetch('http://reports:8000/report', { signal: AbortSignal.timeout(8000), headers: { connection: 'close' } });
    res.status(answer.status).send(await answer.text());
  } catch (err) {
    res.status(502).send(String(err.cause || err));
  }
});

app.get('/health', (req, res) => res.send('ok'));
app.listen(3000, '::');
