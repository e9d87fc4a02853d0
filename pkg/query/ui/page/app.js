// The page of the role query: a map of services, the history of an edge, and a trace. It
// has no dependencies, and loads nothing from elsewhere.
"use strict";

const main = document.getElementById("main");
const statusLine = document.getElementById("status");
const clean = "network clean";
let links = {};
let shown = 0; // the newest request; answers to earlier ones are dropped

// el makes an element. Children are nodes or texts; a function is a listener.
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "text", "title", "line", "polyline", "marker", "defs"].includes(name);
  const e = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") e.addEventListener(key, value);
    else if (value !== undefined && value !== null && value !== false) e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return e;
}

async function ask(path) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = "Bearer " + token;
  const answer = await fetch("data/" + path, { headers });
  if (answer.status === 401) {
    document.getElementById("login").hidden = false;
    document.getElementById("token").focus();
    throw new Error("a token is required");
  }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

const minutes = () => document.getElementById("minutes").value;
const number = (n) => n.toLocaleString("en-US");
const ms = (n) => (n >= 1000 ? (n / 1000).toFixed(2) + " s" : n >= 10 ? n.toFixed(0) + " ms" : n.toFixed(2) + " ms");
const percent = (part, whole) => (whole ? ((100 * part) / whole).toFixed(part ? 1 : 0) + " %" : "");
const nameOf = (service, address) => service || address || "unknown";
const verdictClass = (v) => (!v ? "unknown" : v === clean ? "clean" : "bad");
const verdictText = (v) => el("span", { class: verdictClass(v) + "-text" }, v || "not known");
const edgeHash = (e) => "#/edge/" + encodeURIComponent(e.client) + "/" + encodeURIComponent(e.server);

function say(text, error = false) {
  statusLine.textContent = text;
  statusLine.className = error ? "error" : "";
}

// show replaces the content with what the address asks for.
async function show() {
  const id = ++shown;
  say("Reading…");
  main.setAttribute("aria-busy", "true");
  try {
    const [kind, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    links = await ask("links");
    let content;
    if (kind === "edge") content = await edgeView(rest[0], rest[1]);
    else if (kind === "trace") content = await traceView(rest[0]);
    else content = await mapView();
    if (id !== shown) return;
    main.replaceChildren(...content);
    say("As of " + new Date().toLocaleTimeString());
  } catch (e) {
    if (id !== shown) return;
    main.replaceChildren();
    say(e.message, true);
  }
  main.removeAttribute("aria-busy");
  document.body.dataset.shown = location.hash || "#/"; // tests wait for it
}

async function mapView() {
  document.title = "Services · MetaFlow";
  const edges = (await ask("edges?minutes=" + minutes())) || [];
  if (edges.length === 0) return [el("p", {}, "No calls between services in this time.")];
  const bad = edges.filter((e) => verdictClass(e.verdict) === "bad");
  const summary = bad.length === 0 ? "No edge is in trouble." : bad.length + (bad.length === 1 ? " edge is" : " edges are") + " in trouble.";
  return [
    el("h2", {}, "Services"),
    el("p", { class: bad.length ? "bad-text" : "clean-text" }, summary),
    el("div", { class: "map" }, drawMap(edges)),
    el("p", { class: "legend" }, el("span", {}, el("b", { class: "clean-text" }, "— "), clean), el("span", {}, el("b", { class: "bad-text" }, "- - "), "in trouble"), el("span", {}, el("b", {}, "· · "), "no flow data")),
    el("h2", {}, "Edges"),
    table("Calls between services, the busiest first", ["From", "To", "Network", "Requests#", "Errors#", "P50#", "P99#", "Sent again#", "RTT#", "Why"],
      edges.map((e) => [
        el("a", { href: edgeHash(e) }, nameOf(e.client, e.client_address)), nameOf(e.server, e.server_address), verdictText(e.verdict),
        number(e.requests), percent(e.errors, e.requests), ms(e.p50_ms), ms(e.p99_ms), percent(e.retransmits, e.segments_sent), e.rtt_us ? ms(e.rtt_us / 1000) : "", e.why || "",
      ])),
  ];
}

// table makes a table; a heading that ends in # is of numbers.
function table(caption, headings, rows) {
  const numeric = headings.map((h) => h.endsWith("#"));
  return el("div", { class: "table" }, el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, headings.map((h, i) => el("th", { scope: "col", class: numeric[i] ? "n" : null }, h.replace("#", ""))))),
    el("tbody", {}, rows.map((r) => el("tr", {}, r.map((c, i) => el("td", { class: numeric[i] ? "n" : null }, c)))))));
}

// place puts services into columns, callers before callees, and returns their places.
function place(edges) {
  const names = new Set(edges.flatMap((e) => [nameOf(e.client, e.client_address), nameOf(e.server, e.server_address)]));
  const out = new Map([...names].map((n) => [n, []]));
  const into = new Map([...names].map((n) => [n, 0]));
  for (const e of edges) {
    const [a, b] = [nameOf(e.client, e.client_address), nameOf(e.server, e.server_address)];
    if (a !== b) { out.get(a).push(b); into.set(b, into.get(b) + 1); }
  }
  const depth = new Map();
  const walk = (n, d, path) => { // the longest way from an entry, without cycles
    if ((depth.get(n) ?? -1) >= d || path.has(n) || d > names.size) return;
    depth.set(n, d);
    path.add(n);
    for (const m of out.get(n)) walk(m, d + 1, path);
    path.delete(n);
  };
  for (const n of names) if (into.get(n) === 0) walk(n, 0, new Set());
  for (const n of names) if (!depth.has(n)) walk(n, 0, new Set());
  const columns = [];
  for (const n of names) (columns[depth.get(n)] ||= []).push(n);
  return columns.filter(Boolean);
}

function drawMap(edges) {
  const columns = place(edges);
  const [boxW, boxH, gapX, gapY] = [190, 34, 150, 44];
  const tallest = Math.max(...columns.map((c) => c.length));
  const width = columns.length * boxW + (columns.length - 1) * gapX + 40;
  const height = tallest * (boxH + gapY) + 20;
  const at = new Map();
  columns.forEach((c, x) => c.forEach((n, y) => at.set(n, { x: 20 + x * (boxW + gapX), y: ((y + 0.5) * height) / c.length - boxH / 2 })));
  const most = Math.max(...edges.map((e) => e.requests), 1);
  const drawn = edges.map((e) => {
    const [from, to] = [nameOf(e.client, e.client_address), nameOf(e.server, e.server_address)];
    const [a, b] = [at.get(from), at.get(to)];
    const back = b.x <= a.x;
    const [x1, y1, x2, y2] = [a.x + (back ? 0 : boxW), a.y + boxH / 2, b.x + (back ? boxW : 0), b.y + boxH / 2];
    const bend = back ? -70 : Math.max(50, (x2 - x1) / 2);
    const d = `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}`;
    const label = `${from} to ${to}: ${number(e.requests)} requests, ${e.errors ? percent(e.errors, e.requests) + " failed, " : ""}network: ${e.verdict || "not known"}`;
    const open = () => { location.hash = edgeHash(e); };
    const bad = verdictClass(e.verdict) === "bad";
    return el("g", {
      class: "edge " + verdictClass(e.verdict), tabindex: 0, role: "link", "aria-label": label, click: open,
      keydown: (k) => { if (k.key === "Enter" || k.key === " ") { k.preventDefault(); open(); } },
    },
    el("title", {}, label + (e.why ? ": " + e.why : "")),
    el("path", { class: "hit", d }),
    el("path", { class: "wire", d, "stroke-width": (1.5 + (3 * Math.log1p(e.requests)) / Math.log1p(most)).toFixed(1) }),
    bad ? el("text", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 6 }, e.verdict) : null);
  });
  const boxes = [...at].map(([n, p]) => el("g", { class: "node" },
    el("rect", { x: p.x, y: p.y, width: boxW, height: boxH, rx: 6 }), el("text", { x: p.x + boxW / 2, y: p.y + boxH / 2 }, n.length > 26 ? n.slice(0, 25) + "…" : n), el("title", {}, n)));
  return el("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${Math.round(width * 1.2)}px`, role: "group", "aria-label": "Map of services; Tab goes through the edges" }, drawn, boxes);
}

async function edgeView(client, server) {
  document.title = `${client} → ${server} · MetaFlow`;
  const query = `client=${encodeURIComponent(client)}&server=${encodeURIComponent(server)}&minutes=${minutes()}`;
  const [history, traces] = await Promise.all([ask("edge?" + query), ask("traces?" + query)]);
  const content = [el("h2", {}, `${client || "unknown"} → ${server || "unknown"}`), el("p", {}, el("a", { href: "#/" }, "All services"))];
  if (!history || history.length === 0) return [...content, el("p", {}, "No calls on this edge in this time.")];
  content.push(el("div", { class: "charts" },
    chart("Requests a minute, and those that failed", history, [{ key: "requests", kind: "bars" }, { key: "errors", kind: "bars bad" }], number),
    chart("Latency: p50, and p99 dashed", history, [{ key: "p50_ms", kind: "series" }, { key: "p99_ms", kind: "series second" }], ms),
    chart("Segments sent again, resets and failed connects", history, [{ value: (m) => m.retransmits + m.resets + m.connect_failures, kind: "bars bad" }], number),
    chart("Round trip time, and the usual one dashed", history, [{ value: (m) => m.rtt_us / 1000, kind: "series" }, { value: (m) => m.rtt_usual_us / 1000, kind: "series second" }], ms)));
  content.push(el("h3", {}, "Slow traces over this edge"));
  if (!traces || traces.length === 0) content.push(el("p", {}, "None in this time."));
  else content.push(table("Of the newest traces, the slowest first", ["Trace", "Began", "Root", "Duration#", "Spans#", "Errors#"],
    traces.map((t) => [el("a", { href: "#/trace/" + t.trace_id }, el("code", {}, t.trace_id.slice(0, 16))), new Date(t.start).toLocaleTimeString(), t.root_service + " " + t.root_name, ms(t.duration_ms), number(t.spans), number(t.errors)])));
  content.push(el("h3", {}, "Minutes"), table("The newest first", ["Minute", "Requests#", "Errors#", "P50#", "P99#", "Sent again#", "RTT#"],
    history.slice().reverse().map((m) => [new Date(m.minute).toLocaleTimeString(), number(m.requests), number(m.errors), ms(m.p50_ms), ms(m.p99_ms), number(m.retransmits), ms(m.rtt_us / 1000)])));
  return content;
}

// chart draws series over the minutes. The table below has the same numbers as text.
function chart(title, history, series, format) {
  const [w, h, left, bottom] = [440, 150, 54, 20];
  const value = (s, m) => (s.value ? s.value(m) : m[s.key]);
  const top = Math.max(...history.flatMap((m) => series.map((s) => value(s, m))), 0);
  const scale = top || 1;
  const start = Date.parse(history[0].minute);
  const span = Math.max(Date.parse(history[history.length - 1].minute) - start, 60000) + 60000;
  const x = (m, shift = 0) => left + ((Date.parse(m.minute) - start + shift) / span) * (w - left);
  const y = (v) => h - bottom - (v / scale) * (h - bottom - 10);
  const width = Math.max(((w - left) * 60000) / span - 1, 1);
  const drawn = series.filter((s) => history.some((m) => value(s, m) > 0)).flatMap((s) => s.kind.startsWith("bars")
    ? history.map((m) => el("rect", { class: s.kind, x: x(m), y: y(value(s, m)), width, height: h - bottom - y(value(s, m)) }))
    : [el("polyline", { class: s.kind, points: history.map((m) => `${x(m, 30000).toFixed(1)},${y(value(s, m)).toFixed(1)}`).join(" ") })]);
  const clock = (t) => new Date(t).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return el("figure", {}, el("figcaption", {}, title),
    el("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${title}: at most ${format(top)} a minute` },
      el("line", { class: "axis", x1: left, y1: h - bottom, x2: w, y2: h - bottom }), el("line", { class: "axis", x1: left, y1: 10, x2: w, y2: 10 }),
      el("text", { class: "tick", x: 0, y: 14 }, format(top)), el("text", { class: "tick", x: 0, y: h - bottom }, "0"),
      el("text", { class: "tick", x: left, y: h - 4 }, clock(start)), el("text", { class: "tick", x: w - 36, y: h - 4 }, clock(start + span)), drawn));
}

async function traceView(id) {
  document.title = `Trace ${id} · MetaFlow`;
  const trace = await ask("trace/" + encodeURIComponent(id));
  const children = new Map();
  const known = new Set(trace.spans.map((s) => s.id));
  for (const s of trace.spans) {
    const parent = known.has(s.parent) ? s.parent : "";
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(s);
  }
  // Spans may share an id (B3 gives one to both ends of a call), and parents may form a cycle.
  const rows = [], seen = new Set(), opened = new Set();
  const walk = (spans, depth) => {
    const stack = spans.map((s) => ({ s, depth })).reverse();
    while (stack.length > 0) {
      const row = stack.pop();
      if (seen.has(row.s)) continue;
      seen.add(row.s);
      rows.push(row);
      if (opened.has(row.s.id)) continue;
      opened.add(row.s.id);
      for (const s of [...(children.get(row.s.id) || [])].reverse()) stack.push({ s, depth: row.depth + 1 });
    }
  };
  walk(children.get("") || [], 0);
  for (const s of trace.spans) if (!seen.has(s)) walk([s], 0); // in a cycle
  const start = Math.min(...trace.spans.map((s) => s.start_us));
  const end = Math.max(...trace.spans.map((s) => s.start_us + s.duration_us));
  const harmed = rows.filter(({ s }) => s.network && verdictClass(s.network.verdict) === "bad");
  const list = el("ol", { class: "waterfall", "aria-label": "Spans; the arrow keys go up and down, Enter shows details" }, rows.map((r) => spanRow(r, start, Math.max(end - start, 1))));
  list.addEventListener("keydown", (k) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[k.key];
    if (!step) return;
    const all = [...list.querySelectorAll(".row")];
    const next = all[all.indexOf(document.activeElement) + step];
    if (next) { k.preventDefault(); next.focus(); }
  });
  const out = [];
  if (links.grafana) {
    const panes = { a: { datasource: "metaflow-tempo", queries: [{ refId: "A", queryType: "traceql", query: id }], range: { from: "now-1h", to: "now" } } };
    out.push(el("a", { href: `${links.grafana}/explore?schemaVersion=1&panes=${encodeURIComponent(JSON.stringify(panes))}` }, "Open in Grafana"), " ");
  }
  if (links.jaeger) out.push(el("a", { href: `${links.jaeger}/trace/${id}` }, "Open in Jaeger"));
  const verdict = !trace.network_known ? el("p", { class: "dim" }, "What the network did is not known: there is no flow data, or it took too long to read.")
    : harmed.length === 0 ? el("p", { class: "clean-text" }, "The network harmed no call of this trace.")
      : el("p", { class: "bad-text" }, `It was the network: ${[...new Set(harmed.map(({ s }) => s.network.verdict))].join(", ")}, at ${harmed.length} of ${rows.length} spans.`);
  return [el("h2", {}, "Trace ", el("code", {}, id)), el("p", {}, `${new Date(start / 1000).toLocaleString()}, ${ms((end - start) / 1000)}, ${rows.length} spans. `, out),
    trace.cut ? el("p", { class: "bad-text" }, "The trace has more spans; the others are left out (query.max_spans).") : null, verdict, list].filter(Boolean);
}

function spanRow({ s, depth }, start, whole) {
  const n = s.network || {};
  const bad = verdictClass(n.verdict) === "bad";
  const offset = (100 * (s.start_us - start)) / whole;
  const length = Math.max((100 * s.duration_us) / whole, 0);
  const details = el("dl", { class: "details", hidden: true });
  for (const [key, value] of [
    ["Kind", s.kind], ["Status", s.status + (s.message ? ": " + s.message : "")], ["Network", n.verdict], ["Why", n.why], ["No connection found", n.unmatched],
    ["Peer", n.peer], ["Matched by", n.matched], ["Seen at", n.seen], ["Evidence", n.evidence],
    ["Gap", n.gap_ns ? ms(n.gap_ns / 1e6) + " between the client's and the server's time" : ""], ["Sent again", n.verdict ? `${number(n.retransmits)} of ${number(n.segments_sent)} segments` : ""],
    ["Round trip", n.rtt_us ? ms(n.rtt_us / 1000) : ""], ["Resets", n.resets || ""], ["Span", s.id],
    ...Object.entries(s.attributes || {}),
  ]) if (value) details.append(el("dt", {}, key), el("dd", {}, String(value)));
  const row = el("button", {
    class: "row", type: "button", "aria-expanded": "false",
    click: () => { details.hidden = !details.hidden; row.setAttribute("aria-expanded", String(!details.hidden)); },
  },
  el("span", { class: "name" }, "\u00a0\u00a0".repeat(Math.min(depth, 20)), s.name, " ", el("span", { class: "service" }, s.service)),
  el("span", { class: "track", "aria-hidden": "true" },
    el("i", { class: (s.status === "error" ? "error " : "") + (bad ? "harmed" : ""), style: `left:${offset.toFixed(2)}%;width:${Math.min(length, 100 - offset).toFixed(2)}%` }),
    el("span", { style: offset + length < 80 ? `left:calc(${(offset + length).toFixed(2)}% + 6px)` : `right:calc(${(100 - offset).toFixed(2)}% + 6px)` }, ms(s.duration_us / 1000))),
  el("span", {}, el("span", { class: "skip" }, ms(s.duration_us / 1000) + " "), n.verdict ? verdictText(n.verdict) : el("span", { class: "dim" }, "")));
  return el("li", {}, row, details);
}

document.getElementById("find").addEventListener("submit", (e) => {
  e.preventDefault();
  const id = document.getElementById("trace").value.trim();
  if (id) location.hash = "#/trace/" + encodeURIComponent(id);
});
document.getElementById("login").addEventListener("submit", (e) => {
  e.preventDefault();
  sessionStorage.setItem("token", document.getElementById("token").value.trim());
  document.getElementById("login").hidden = true;
  show();
});
document.getElementById("minutes").addEventListener("change", show);
document.getElementById("reload").addEventListener("click", show);
window.addEventListener("hashchange", () => { show().then(() => { main.focus({ preventScroll: true }); window.scrollTo(0, 0); }); });
show();
