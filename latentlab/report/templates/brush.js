"use strict";
(function () {
  // Linked brushing: one set of marked units, drawn in every panel.
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach(d => { d.open = true; d.dataset.folded = ""; }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach(d => { d.open = false; delete d.dataset.folded; }));
  document.querySelectorAll(".brush").forEach(begin);

  function begin(root) {
  const source = document.getElementById(root.id + "-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const n = data.units.length, MOST = 200, RINGS = 40, PAD = 12, NEAR = 9;
  const marked = new Set();
  let way = "aligned", axes = [0, 1], cursor = -1;
  const many = n > 600;
  const size = many ? 2.2 : 3.4;

  const element = (tag, inside, properties) => {
    const made = Object.assign(document.createElement(tag), properties || {});
    if (inside) inside.append(made);
    return made;
  };
  const part = name => root.querySelector("." + name);
  const name = i => data.units[i] + (data.labels ? " · " + data.labels[i] : "");

  // -- marks, one shape a class

  const POLYGONS = { 1: [4, Math.PI / 4], 2: [3, -Math.PI / 2], 3: [4, 0], 4: [3, Math.PI / 2], 7: [3, Math.PI], 8: [3, 0], 10: [5, -Math.PI / 2], 11: [6, 0] };

  function outline(c, kind, x, y, r) {
    const polygon = (n, start, radius) => {
      for (let k = 0; k < n; k++) {
        const a = start + 2 * Math.PI * k / n, length = radius(k);
        c[k ? "lineTo" : "moveTo"](x + length * Math.cos(a), y + length * Math.sin(a));
      }
      c.closePath();
    };
    if (kind === 5 || kind === 6) {  // a cross: twelve corners, upright or turned
      const w = 0.45 * r, at = [[-w, -r], [w, -r], [w, -w], [r, -w], [r, w], [w, w], [w, r], [-w, r], [-w, w], [-r, w], [-r, -w], [-w, -w]];
      const turn = kind === 6 ? Math.SQRT1_2 : 0;
      at.forEach(([u, v], k) => c[k ? "lineTo" : "moveTo"](x + (turn ? turn * (u - v) : u), y + (turn ? turn * (u + v) : v)));
      c.closePath();
    } else if (kind === 9) polygon(10, -Math.PI / 2, k => k % 2 ? 0.5 * r : 1.2 * r);
    else if (POLYGONS[kind]) polygon(...POLYGONS[kind], () => 1.25 * r);
    else { c.moveTo(x + r, y); c.arc(x, y, r, 0, 2 * Math.PI); }
  }

  // -- panels

  const order = Array.from(data.panels[0].aligned[0].keys()).sort((a, b) => data.panels[0].aligned[0][a] - data.panels[0].aligned[0][b]);
  const rank = new Array(n);
  order.forEach((unit, i) => { rank[unit] = i; });

  function columns(panel) {
    const of = panel.data[way];
    const pick = k => of[Math.min(k, of.length - 1)];
    return of.length === 1 ? [of[0], rank] : [pick(axes[0]), pick(axes[1])];
  }

  function lay(panel) {
    const ratio = window.devicePixelRatio || 1, side = panel.canvas.clientWidth || 240;
    panel.side = side;
    const fine = Math.max(2, ratio);
    panel.canvas.width = panel.canvas.height = Math.round(side * fine);
    panel.context.setTransform(fine, 0, 0, fine, 0, 0);
    const [x, y] = columns(panel);
    const ends = v => { let a = Infinity, b = -Infinity; for (const e of v) { if (e < a) a = e; if (e > b) b = e; } return [a, b]; };
    const [x0, x1] = ends(x), [y0, y1] = ends(y);
    let sx = (side - 2 * PAD) / ((x1 - x0) || 1), sy = (side - 2 * PAD) / ((y1 - y0) || 1);
    if (y !== rank) sx = sy = Math.min(sx, sy);
    panel.x = x.map(v => side / 2 + (v - (x0 + x1) / 2) * sx);
    panel.y = y.map(v => side / 2 - (v - (y0 + y1) / 2) * sy);
    panel.scale = [sx, sy];
    panel.ground = {};
  }

  function ellipse(panel, i) {
    const c = panel.context, S = data.covariance, [a, b] = axes, [sx, sy] = panel.scale;
    if (!S || panel.data.disagreement !== null || S.length < 2 || Math.max(a, b) >= S.length || a === b) return;
    const p = S[a][a][i], q = S[b][b][i], r = S[a][b][i];
    const mid = (p + q) / 2, gap = Math.hypot((p - q) / 2, r), angle = 0.5 * Math.atan2(2 * r, p - q);
    c.beginPath();
    c.ellipse(panel.x[i], panel.y[i], data.radius * Math.sqrt(Math.max(0, mid + gap)) * sx, data.radius * Math.sqrt(Math.max(0, mid - gap)) * sy, -angle, 0, 2 * Math.PI);
    c.stroke();
  }

  function points(c, panel, units, alpha) {
    const { colors, markers } = data.classes, codes = panel.data.codes || data.classes.codes, by = colors.map(() => []);
    for (const i of units) by[codes[i]].push(i);
    c.globalAlpha = alpha;
    by.forEach((units, code) => {
      c.fillStyle = colors[code];
      c.beginPath();
      for (const i of units) outline(c, markers[code], panel.x[i], panel.y[i], size);
      c.fill();
    });
    c.globalAlpha = 1;
  }

  // All units, pale or not, are drawn once and kept as a picture: brushing draws only what is marked.
  function ground(panel, alpha) {
    if (!panel.ground[alpha]) {
      const kept = panel.ground[alpha] = document.createElement("canvas");
      kept.width = panel.canvas.width;
      kept.height = panel.canvas.height;
      const c = kept.getContext("2d");
      c.setTransform(panel.context.getTransform());
      c.fillStyle = "#fff";
      c.fillRect(0, 0, panel.side, panel.side);
      points(c, panel, data.units.keys(), alpha);
    }
    panel.context.drawImage(panel.ground[alpha], 0, 0, panel.side, panel.side);
  }

  function draw(panel) {
    const c = panel.context;
    const units = [...marked];
    ground(panel, units.length ? 0.16 : 0.8);
    c.strokeStyle = "#333"; c.lineWidth = 0.8;
    c.globalAlpha = Math.min(1, Math.max(0.15, 15 / (units.length || 1)));
    if (units.length <= MOST) for (const i of units) ellipse(panel, i);
    points(c, panel, units, 1);
    if (units.length <= RINGS) {
      c.lineWidth = 1;
      for (const i of units) { c.beginPath(); c.arc(panel.x[i], panel.y[i], size + 2, 0, 2 * Math.PI); c.stroke(); }
    }
    if (cursor >= 0) {
      c.strokeStyle = "#000"; c.lineWidth = 2;
      c.beginPath(); c.arc(panel.x[cursor], panel.y[cursor], size + 5, 0, 2 * Math.PI); c.stroke();
      c.lineWidth = 0.8; ellipse(panel, cursor);
    }
    if (panel.box) {
      const [a, b, w, h] = rectangle(panel.box);
      c.strokeStyle = "#000"; c.lineWidth = 1; c.setLineDash([4, 3]); c.strokeRect(a, b, w, h); c.setLineDash([]);
    }
  }

  let waiting = false;
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; all.forEach(draw); });
  }

  const rectangle = ([x0, y0, x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
  function inside(panel) {
    const [a, b, w, h] = rectangle(panel.box), found = [];
    for (let i = 0; i < n; i++) if (panel.x[i] >= a && panel.x[i] <= a + w && panel.y[i] >= b && panel.y[i] <= b + h) found.push(i);
    return found;
  }
  function nearest(panel, x, y) {
    let best = -1, least = NEAR * NEAR;
    for (let i = 0; i < n; i++) {
      const d = (panel.x[i] - x) ** 2 + (panel.y[i] - y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  // -- what is marked

  function mark(units, more) {
    if (!more) marked.clear();
    for (const i of units) marked.add(i);
    tell();
    redraw();
  }
  function toggle(i) { marked.has(i) ? marked.delete(i) : marked.add(i); tell(); redraw(); }

  function tell() {
    const units = [...marked].sort((a, b) => a - b);
    let text = units.length ? units.length + " of " + n + (units.length === 1 ? " units is marked" : " units are marked") : "No unit is marked.";
    if (units.length && data.labels) {
      const by = new Map();
      for (const i of units) by.set(data.labels[i], (by.get(data.labels[i]) || 0) + 1);
      text += " (" + [...by].sort((a, b) => b[1] - a[1]).slice(0, 12).map(([label, k]) => label + ": " + k).join(", ") + ")";
    }
    part("message").textContent = text;
    const list = part("marked");
    list.replaceChildren(...units.slice(0, MOST).map(i => { const item = element("li"); item.textContent = name(i); return item; }));
    if (units.length > MOST) element("li", list).textContent = "and " + (units.length - MOST) + " more";
    root.dataset.marked = units.length;
  }

  function point(panel, i, hover) {
    cursor = i;
    all.forEach(p => { p.tip.hidden = true; });
    if (i >= 0) {
      const disagreement = panel.data.disagreement;
      panel.tip.textContent = name(i) + (disagreement ? " · disagreement " + disagreement[i].toPrecision(3) : " · " + data.spread_name + " " + data.spread[i].toPrecision(3));
      panel.tip.style.left = Math.min(panel.x[i] + 10, panel.side * 0.55) + "px";
      panel.tip.style.top = (panel.canvas.offsetTop + panel.y[i] + 10) + "px";
      panel.tip.hidden = false;
      if (!hover) part("message").textContent = panel.tip.textContent;
    }
    redraw();
  }

  // -- parts of the page

  const all = data.panels.map(content => {
    const box = element("div", part("panels"), { className: "panel" });
    element("h3", box).textContent = content.title;
    element("p", box, { className: "note" }).textContent = content.note;
    const canvas = element("canvas", box, { tabIndex: 0 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", content.title + ", " + content.note + ". " + n + " units. Arrow keys move between units, Enter marks a unit, Escape clears all marks.");
    const tip = element("div", box, { className: "tip", hidden: true });
    const panel = { data: content, canvas, tip, context: canvas.getContext("2d"), box: null };
    const at = e => { const r = canvas.getBoundingClientRect(); return [(e.clientX - r.left) * panel.side / r.width, (e.clientY - r.top) * panel.side / r.height]; };
    canvas.addEventListener("pointerdown", e => {
      try { canvas.setPointerCapture(e.pointerId); } catch (_) { /* the pointer is no longer active */ }
      panel.box = [...at(e), ...at(e)];
      panel.before = e.shiftKey ? [...marked] : [];
      panel.tip.hidden = true;
    });
    canvas.addEventListener("pointermove", e => {
      const [x, y] = at(e);
      if (!panel.box) { const i = nearest(panel, x, y); if (i !== cursor) point(panel, i, true); return; }
      panel.box[2] = x; panel.box[3] = y;
      cursor = -1;
      mark([...panel.before, ...inside(panel)]);
    });
    canvas.addEventListener("pointerup", e => {
      if (!panel.box) return;
      const [, , w, h] = rectangle(panel.box), [x, y] = at(e);
      if (w < 3 && h < 3) {
        const i = nearest(panel, x, y);
        if (i >= 0 && e.shiftKey) toggle(i); else mark(i >= 0 ? [i] : []);
      }
      panel.box = null;
      redraw();
    });
    canvas.addEventListener("pointercancel", () => { panel.box = null; redraw(); });
    canvas.addEventListener("pointerleave", () => { if (!panel.box) point(panel, -1, true); });
    canvas.addEventListener("blur", () => { point(panel, -1, true); tell(); });
    canvas.addEventListener("keydown", e => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
      const by = Array.from(panel.x.keys()).sort((a, b) => panel.x[a] - panel.x[b]);
      if (step) point(panel, by[(by.indexOf(cursor) + step + n) % n] ?? by[0], false);
      else if (e.key === "Enter" || e.key === " ") { if (cursor >= 0) toggle(cursor); }
      else if (e.key === "Escape") mark([]);
      else return;
      e.preventDefault();
    });
    return panel;
  });

  const tools = part("tools");
  const button = (text, act, inside) => { const b = element("button", inside || tools, { type: "button" }); b.textContent = text; b.addEventListener("click", () => act(b)); return b; };
  button("Clear marks", () => mark([])).className = "clear";
  if (data.panels.some(panel => JSON.stringify(panel.aligned) !== JSON.stringify(panel.raw))) {
    const both = ["aligned", "raw"].map(kind => button(kind === "aligned" ? "aligned to the posterior" : "raw coordinates", b => {
      way = kind;
      both.forEach(o => o.setAttribute("aria-pressed", o === b));
      all.forEach(lay);
      redraw();
    }));
    both[0].setAttribute("aria-pressed", true);
    both[1].setAttribute("aria-pressed", false);
  }
  const q = data.panels[0].aligned.length;
  if (q > 2) ["horizontal", "vertical"].forEach((where, k) => {
    const label = element("label", tools);
    label.append(where + " axis ");
    const select = element("select", label);
    for (let j = 0; j < q; j++) element("option", select, { value: j, textContent: j + 1, selected: j === axes[k] });
    select.addEventListener("change", () => { axes[k] = +select.value; all.forEach(lay); redraw(); });
  });
  const find = element("input", tools, { type: "search", placeholder: "mark units by name" });
  find.setAttribute("aria-label", "Mark units by name (whole name, or a part of at least three characters)");
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    const fits = unit => unit === wanted || (wanted.length > 2 && unit.includes(wanted));
    mark(wanted ? [...data.units.keys()].filter(i => fits(data.units[i].toLowerCase())) : []);
  });
  data.classes.names.forEach((label, code) => {
    const chip = button("", () => mark([...data.units.keys()].filter(i => data.classes.codes[i] === code)), part("legend"));
    const icon = element("canvas", chip, { width: 28, height: 28 });
    icon.style.cssText = "width:14px;height:14px";
    icon.setAttribute("aria-hidden", "true");
    const c = icon.getContext("2d");
    c.fillStyle = data.classes.colors[code];
    c.beginPath();
    outline(c, data.classes.markers[code], 14, 14, 9);
    c.fill();
    chip.append(label);
  });

  all.forEach(lay);
  tell();
  redraw();
  if (window.ResizeObserver) new ResizeObserver(() => { all.forEach(lay); redraw(); }).observe(part("panels"));
  }
})();
