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
const endsOf = (e) => [nameOf(e.client, e.client_address), nameOf(e.server, e.server_address)];
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
    main.replaceChildren(el("p", {}, el("button", { type: "button", click: show }, "Try again"), " ", el("a", { href: "#/" }, "All services")));
    say(e.message, true);
  }
  main.removeAttribute("aria-busy");
  document.body.dataset.shown = location.hash || "#/"; // tests wait for it
}

async function mapView() {
  document.title = "Services · MetaFlow";
  const edges = (await ask("edges?minutes=" + minutes())) || [];
  if (edges.length === 0) {
    return [el("h2", {}, "Services"), el("p", {}, "No calls between services in this time."),
      el("p", { class: "dim" }, "A call is known by its spans at both ends, or by the flow data of an agent at one. Choose a longer time, or look up a trace by its id.")];
  }
  const bad = edges.filter((e) => verdictClass(e.verdict) === "bad");
  const rest = edges.filter((e) => verdictClass(e.verdict) !== "bad");
  const summary = bad.length === 0 ? ["No edge is in trouble."] : [bad.length + (bad.length === 1 ? " edge is" : " edges are") + " in trouble: ",
    bad.slice(0, 5).flatMap((e, i) => [i ? ", " : "", el("a", { href: edgeHash(e) }, endsOf(e).join(" → ")), ` (${e.verdict})`]), bad.length > 5 ? ", and more below." : "."];
  return [
    el("h2", {}, "Services"),
    el("p", { class: bad.length ? "bad-text" : "clean-text" }, ...summary),
    el("div", { class: "map" }, drawMap([...rest, ...bad])),
    el("p", { class: "legend" }, el("span", {}, el("b", { class: "clean-text" }, "— "), clean), el("span", {}, el("b", { class: "bad-text" }, "- - "), "in trouble"), el("span", {}, el("b", {}, "· · "), "no flow data")),
    el("h2", {}, "Edges"),
    table(bad.length ? "Calls between services: those in trouble, then the busiest" : "Calls between services, the busiest first", ["From", "To", "Network", "Requests#", "Errors#", "P50#", "P99#", "Sent again#", "RTT#", "Why"],
      [...bad, ...rest].map((e) => [
        el("a", { href: edgeHash(e) }, endsOf(e)[0]), endsOf(e)[1], verdictText(e.verdict),
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

// rank returns the column of each service: callers stand left of callees.
function rank(pairs) {
  const out = new Map(), called = new Set();
  for (const [a, b] of pairs) {
    for (const n of [a, b]) if (!out.has(n)) out.set(n, []);
    if (a !== b) { out.get(a).push(b); called.add(b); }
  }
  const depth = new Map();
  const walk = (n, d, path) => { // the longest way from an entry, without cycles
    if ((depth.get(n) ?? -1) >= d || path.has(n) || d > out.size) return;
    depth.set(n, d);
    path.add(n);
    for (const m of out.get(n)) walk(m, d + 1, path);
    path.delete(n);
  };
  for (const n of out.keys()) if (!called.has(n)) walk(n, 0, new Set());
  for (const n of out.keys()) if (!depth.has(n)) walk(n, 0, new Set());
  return depth;
}

const [boxW, boxH, gapX] = [164, 32, 112];

// place returns the places of services by name, and for each pair the places between its
// ends that a long edge passes, so that it does not cross services.
function place(pairs) {
  const depth = rank(pairs);
  const columns = Array.from({ length: Math.max(...depth.values()) + 1 }, () => []);
  const put = (column, height) => {
    const node = { x: 20 + column * (boxW + gapX), y: 0, height, left: [], right: [] };
    columns[column].push(node);
    return node;
  };
  const at = new Map([...depth].map(([n, d]) => [n, put(d, boxH + 18)]));
  const between = pairs.map(([a, b]) => {
    const way = [];
    let last = at.get(a);
    const join = (node) => { last.right.push(node); node.left.push(last); last = node; };
    for (let d = depth.get(a) + 1; d < depth.get(b); d++) { way.push(put(d, 20)); join(way[way.length - 1]); }
    if (depth.get(b) > depth.get(a)) join(at.get(b));
    return way;
  });
  const mean = (nodes, otherwise) => (nodes.length ? nodes.reduce((sum, n) => sum + n.y, 0) / nodes.length : otherwise);
  const stack = (column) => { let y = 0; for (const n of column) { n.y = y + n.height / 2; y += n.height; } };
  columns.forEach(stack);
  for (let sweep = 0; sweep < 12; sweep++) { // order each column by the neighbours of its nodes
    const leftward = sweep % 2 === 1;
    for (const c of leftward ? [...columns].reverse() : columns) {
      for (const n of c) n.wish = mean(leftward ? n.right : n.left, n.y);
      c.sort((a, b) => a.wish - b.wish);
      stack(c);
      const shift = (Math.max(...columns.map((k) => k.reduce((sum, n) => sum + n.height, 0))) - c.reduce((sum, n) => sum + n.height, 0)) / 2;
      for (const n of c) n.y += shift;
    }
  }
  for (let sweep = 0; sweep < 10; sweep++) { // then move nodes towards them
    for (const c of columns) {
      for (const n of c) n.wish = mean([...n.left, ...n.right], n.y);
      c.forEach((n, i) => { n.y = i ? Math.max(n.wish, c[i - 1].y + (c[i - 1].height + n.height) / 2) : n.wish; });
      const shift = c.reduce((sum, n) => sum + n.wish - n.y, 0) / c.length;
      for (const n of c) n.y += shift;
    }
  }
  let low = 12, cut = 0; // close what is empty across all columns
  for (const n of columns.flat().sort((a, b) => a.y - a.height / 2 - b.y + b.height / 2)) {
    n.y -= cut;
    const gap = n.y - n.height / 2 - low;
    if (low === 12 || gap > 12) { cut += gap; n.y -= gap; }
    low = Math.max(low, n.y + n.height / 2);
  }
  return { at, between, width: columns.length * (boxW + gapX) - gapX + 40, height: low + 12 };
}

// drawMap draws edges in their order: later ones lie above.
function drawMap(edges) {
  const { at, between, width, height } = place(edges.map(endsOf));
  const most = Math.max(...edges.map((e) => e.requests), 1);
  const labels = [];
  const drawn = edges.map((e, i) => {
    const [from, to] = endsOf(e);
    const [a, b] = [at.get(from), at.get(to)];
    let d, middle;
    if (a === b) {
      d = `M${a.x + boxW - 44},${a.y - boxH / 2} c4,-18 34,-18 28,0`;
      middle = [a.x + boxW - 30, a.y - boxH / 2 - 8];
    } else {
      const back = b.x < a.x; // an answer to a cycle of calls
      let [x, y] = [a.x + (back ? 0 : boxW), a.y];
      d = `M${x},${y}`;
      const to = (nextX, nextY) => {
        const bend = back ? -50 : (nextX - x) / 2;
        d += ` C${x + bend},${y} ${nextX - bend},${nextY} ${nextX},${nextY}`;
        middle ??= [(x + nextX) / 2, (y + nextY) / 2 - (Math.abs(nextY - y) < 20 ? 13 : 0)];
        [x, y] = [nextX, nextY];
      };
      for (const n of between[i]) {
        to(n.x, n.y);
        d += ` H${(x = n.x + boxW)}`;
      }
      to(b.x + (back ? boxW : 0), b.y);
    }
    const label = `${from} to ${to}: ${number(e.requests)} requests, ${e.errors ? percent(e.errors, e.requests) + " failed, " : ""}network: ${e.verdict || "not known"}`;
    const open = () => { location.hash = edgeHash(e); };
    if (verdictClass(e.verdict) === "bad") {
      let [x, y] = middle;
      while (labels.some((l) => Math.abs(l.x - x) < 110 && Math.abs(l.y - y) < 15)) y += 15;
      labels.push({ x, y, text: e.verdict });
    }
    return el("g", {
      class: "edge " + verdictClass(e.verdict), tabindex: 0, role: "link", "aria-label": label, click: open,
      keydown: (k) => { if (k.key === "Enter" || k.key === " ") { k.preventDefault(); open(); } },
    },
    el("title", {}, label + (e.why ? ": " + e.why : "")),
    el("path", { class: "hit", d }),
    el("path", { class: "wire", d, "stroke-width": (1.5 + (3 * Math.log1p(e.requests)) / Math.log1p(most)).toFixed(1) }));
  });
  const boxes = [...at].map(([n, p]) => el("g", { class: "node" },
    el("rect", { x: p.x, y: p.y - boxH / 2, width: boxW, height: boxH, rx: 6 }), el("text", { x: p.x + boxW / 2, y: p.y }, n.length > 21 ? n.slice(0, 20) + "…" : n), el("title", {}, n)));
  const texts = labels.map((l) => el("text", { class: "verdict", x: l.x, y: l.y, "aria-hidden": "true" }, l.text));
  return el("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${Math.round(width * 1.2)}px;min-width:${Math.round(width * 0.7)}px`, role: "group", "aria-label": "Map of services; Tab goes through the edges" }, drawn, boxes, texts);
}

async function edgeView(client, server) {
  document.title = `${client || "unknown"} → ${server || "unknown"} · MetaFlow`;
  const query = `client=${encodeURIComponent(client)}&server=${encodeURIComponent(server)}&minutes=${minutes()}`;
  const slow = el("div", { "aria-live": "polite" }, el("p", {}, "Reading…"));
  ask("traces?" + query).then((traces) => slow.replaceChildren(slowTraces(traces)), (e) => slow.replaceChildren(el("p", { class: "error" }, e.message)));
  const history = await ask("edge?" + query);
  const content = [el("h2", {}, `${client || "unknown"} → ${server || "unknown"}`), el("p", {}, el("a", { href: "#/" }, "All services"))];
  if (!history || history.length === 0) return [...content, el("p", {}, "No calls on this edge in this time.")];
  content.push(el("div", { class: "charts" },
    chart("Requests a minute, and those that failed", history, [{ key: "requests", kind: "bars" }, { key: "errors", kind: "bars bad" }], number),
    chart("Latency: p50, and p99 dashed", history, [{ key: "p50_ms", kind: "series" }, { key: "p99_ms", kind: "series second" }], ms),
    chart("Segments sent again, resets and failed connects", history, [{ value: (m) => m.retransmits + m.resets + m.connect_failures, kind: "bars bad" }], number),
    chart("Round trip time, and the usual one dashed", history, [{ value: (m) => m.rtt_us / 1000, kind: "series" }, { value: (m) => m.rtt_usual_us / 1000, kind: "series second" }], ms)));
  content.push(el("h3", {}, "Slow traces over this edge"), slow, el("h3", {}, "Minutes"), table("The newest first", ["Minute", "Requests#", "Errors#", "P50#", "P99#", "Sent again#", "RTT#"],
    history.slice().reverse().map((m) => [new Date(m.minute).toLocaleTimeString(), number(m.requests), number(m.errors), ms(m.p50_ms), ms(m.p99_ms), number(m.retransmits), ms(m.rtt_us / 1000)])));
  return content;
}

function slowTraces(traces) {
  if (!traces || traces.length === 0) return el("p", {}, "None in this time.");
  return table("Of the newest traces, the slowest first", ["Trace", "Began", "Root", "Duration#", "Spans#", "Errors#", "Network"],
    traces.map((t) => [el("a", { href: "#/trace/" + t.trace_id }, el("code", {}, t.trace_id.slice(0, 16))), new Date(t.start).toLocaleTimeString(), t.root_service + " " + t.root_name, ms(t.duration_ms), number(t.spans), number(t.errors), verdictText(t.verdict)]));
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
  const clock = (t) => new Date(t).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  return el("figure", {}, el("figcaption", {}, title),
    el("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${title}: at most ${format(top)} a minute` },
      el("line", { class: "axis", x1: left, y1: h - bottom, x2: w, y2: h - bottom }), el("line", { class: "axis", x1: left, y1: 10, x2: w, y2: 10 }),
      el("text", { class: "tick", x: 0, y: 14 }, format(top)), el("text", { class: "tick", x: 0, y: h - bottom }, "0"),
      el("text", { class: "tick", x: left, y: h - 4 }, clock(start)), el("text", { class: "tick", x: w, y: h - 4, "text-anchor": "end" }, clock(start + span)), drawn));
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
  const whole = Math.max(end - start, 1);
  const lines = rows.map((r, i) => {
    let below = i + 1;
    while (below < rows.length && rows[below].depth > r.depth) below++;
    return spanRow(r, start, whole, below - i - 1, () => fold(i));
  });
  const folded = new Set();
  const fold = (i, shut = !folded.has(i)) => {
    if (shut) folded.add(i); else folded.delete(i);
    for (let j = 0, until = 0; j < rows.length; j++) { // a folded row hides those below it
      lines[j].li.hidden = j < until;
      if (j >= until && folded.has(j)) until = j + 1 + lines[j].below;
      lines[j].mark(folded.has(j));
    }
  };
  const list = el("ol", { class: "waterfall", "aria-label": "Spans: the arrow keys up and down go through them, left and right fold and unfold, Enter shows details, N goes to the next call that the network harmed" }, lines.map((l) => l.li));
  const seek = (from, step, wanted) => {
    for (let i = from + step; i >= 0 && i < lines.length; i += step) {
      if (wanted(i)) { lines[i].row.focus(); return; }
    }
  };
  const isHarmed = (i) => verdictClass(rows[i].s.network?.verdict) === "bad";
  const nextHarmed = (from) => {
    for (const i of [...folded]) fold(i, false);
    seek(from, 1, isHarmed);
  };
  list.addEventListener("keydown", (k) => {
    const i = lines.findIndex((l) => l.row === document.activeElement);
    if (i < 0 || k.ctrlKey || k.metaKey || k.altKey) return;
    const act = {
      ArrowDown: () => seek(i, 1, (j) => !lines[j].li.hidden), ArrowUp: () => seek(i, -1, (j) => !lines[j].li.hidden),
      ArrowLeft: () => lines[i].below && fold(i, true), ArrowRight: () => lines[i].below && fold(i, false), n: () => nextHarmed(i),
    }[k.key];
    if (act) { k.preventDefault(); act(); }
  });
  const out = [];
  if (links.grafana) {
    const panes = { a: { datasource: "metaflow-tempo", queries: [{ refId: "A", queryType: "traceql", query: id }], range: { from: "now-1h", to: "now" } } };
    out.push(el("a", { href: `${links.grafana}/explore?schemaVersion=1&panes=${encodeURIComponent(JSON.stringify(panes))}` }, "Open in Grafana"), " ");
  }
  if (links.jaeger) out.push(el("a", { href: `${links.jaeger}/trace/${id}` }, "Open in Jaeger"));
  const unseen = rows.filter(({ s }) => s.network?.unmatched);
  const verdict = trace.network_missing ? el("p", { class: "bad-text" }, "What the network did could not be read, or not within query.network_timeout. Reload the page to try again.")
    : !trace.network_known ? el("p", { class: "dim" }, `What the network did is not known: ${mostlyUnmatched(unseen) ?? "there is no flow data"}.`)
    : harmed.length === 0 ? el("p", { class: "clean-text" }, `The network harmed no call of this trace${unseen.length ? ` whose connection is known. Of ${unseen.length} spans it is not` : ""}.`)
      : el("p", { class: "bad-text" }, `It was the network: ${[...new Set(harmed.map(({ s }) => s.network.verdict))].join(", ")}, at ${harmed.length} of ${rows.length} spans. `, el("button", { type: "button", click: () => nextHarmed(-1) }, "Go to the first"));
  return [el("h2", {}, "Trace ", el("code", {}, id)), el("p", {}, `${new Date(start / 1000).toLocaleString()}, ${ms((end - start) / 1000)}, ${rows.length} spans. `, out),
    trace.cut ? el("p", { class: "bad-text" }, "The trace has more spans; the others are left out (query.max_spans, query.max_result_bytes).") : null, verdict, ruler(whole), list].filter(Boolean);
}

// mostlyUnmatched returns the commonest reason why no connection was found for the spans of
// calls, or for other spans if there are none.
function mostlyUnmatched(unseen) {
  const calls = unseen.filter(({ s }) => ["client", "server", "producer", "consumer"].includes(s.kind));
  const counts = new Map();
  for (const { s } of calls.length ? calls : unseen) counts.set(s.network.unmatched, (counts.get(s.network.unmatched) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
}

// ruler shows the time above the bars.
function ruler(whole) {
  const ticks = [0, 25, 50, 75].map((p) => el("span", { class: "mark", style: `left:${p}%` }, p ? ms((whole * p) / 100 / 1000) : "0"));
  return el("div", { class: "row ruler", "aria-hidden": "true" }, el("span", {}), el("span", { class: "track" }, ticks), el("span", {}, "Network"));
}

// spanRow makes the line of a span. Its details are made when they are first shown.
function spanRow({ s, depth }, start, whole, below, fold) {
  const n = s.network || {};
  const bad = verdictClass(n.verdict) === "bad";
  const offset = (100 * (s.start_us - start)) / whole;
  const length = Math.min(Math.max((100 * s.duration_us) / whole, 0), 100 - offset);
  const details = el("dl", { class: "details", hidden: true });
  const fill = () => {
    for (const [key, value] of [
      ["Kind", s.kind], ["Status", s.status + (s.message ? ": " + s.message : "")], ["Network", n.verdict], ["Why", n.why], ["No connection found", n.unmatched],
      ["Peer", n.peer], ["Matched by", n.matched], ["Seen at", n.seen], ["Evidence", n.evidence],
      ["Gap", n.gap_ns ? ms(n.gap_ns / 1e6) + " between the client's and the server's time" : ""], ["Sent again", n.verdict ? `${number(n.retransmits)} of ${number(n.segments_sent)} segments` : ""],
      ["Round trip", n.rtt_us ? ms(n.rtt_us / 1000) : ""], ["Resets", n.resets || ""], ["Span", s.id],
      ...Object.entries(s.attributes || {}),
    ]) if (value) details.append(el("dt", {}, key), el("dd", {}, String(value)));
  };
  const place = offset + length < 85 ? { style: `left:calc(${(offset + length).toFixed(2)}% + 6px)` }
    : offset > 15 ? { style: `right:calc(${(100 - offset).toFixed(2)}% + 6px)` } : { class: "in", style: `right:calc(${(100 - offset - length).toFixed(2)}% + 6px)` };
  const mark = el("span", { class: "fold", "aria-hidden": "true", click: (e) => { if (below) { e.stopPropagation(); fold(); } } });
  const row = el("button", {
    class: "row", type: "button", "aria-expanded": "false",
    click: () => {
      if (!details.firstChild) fill();
      details.hidden = !details.hidden;
      row.setAttribute("aria-expanded", String(!details.hidden));
    },
  },
  el("span", { class: "name", style: `padding-left:${Math.min(depth, 20) * 0.8}rem`, title: `${s.name} · ${s.service}` }, mark, s.name, " ", el("span", { class: "service" }, s.service)),
  el("span", { class: "track", "aria-hidden": "true" },
    el("i", { class: (s.status === "error" ? "error " : "") + (bad ? "harmed" : ""), style: `left:${offset.toFixed(2)}%;width:${length.toFixed(2)}%` }),
    el("span", place, ms(s.duration_us / 1000))),
  el("span", { class: "judged" }, el("span", { class: "skip" }, ms(s.duration_us / 1000) + (s.status === "error" ? ", failed " : " ")), n.verdict ? verdictText(n.verdict) : null));
  const line = { li: el("li", {}, row, details), row, below, mark: (shut) => { mark.textContent = below === 0 ? "" : shut ? `▸ ${number(below)} ` : "▾ "; } };
  line.mark(false);
  return line;
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
