"use strict";
// Plot of any result against any swept value, and a table that can be sorted. DATA: {columns, rows, swept, results}.
(() => {
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
  const W = 360, H = 250, LEFT = 58, RIGHT = 10, TOP = 10, BOTTOM = 42;
  const at = Object.fromEntries(DATA.columns.map((c, i) => [c.name, i]));
  const value = (row, name) => row[at[name]];
  const pick = id => document.getElementById(id);
  const fill = (id, names, first) => {
    for (const name of names) pick(id).append(new Option(name, name));
    if (first !== undefined) pick(id).value = first;
  };
  const NONE = "none";
  fill("x", DATA.swept, DATA.swept[0]);
  fill("y", DATA.results, DATA.results[0]);
  fill("colour", [NONE, ...DATA.swept], DATA.swept.find(n => n !== DATA.swept[0] && n !== "seed") ?? NONE);
  fill("facet", [NONE, ...DATA.swept], NONE);

  const interval = name => {
    if (at[`${name}_se`] !== undefined)
      return [row => value(row, name) - value(row, `${name}_se`), row => value(row, name) + value(row, `${name}_se`), "± one standard error"];
    if (at[`${name}.q05`] !== undefined)
      return [row => value(row, `${name}.q05`), row => value(row, `${name}.q95`), "from the 5% to the 95% quantile of the posterior"];
    return null;
  };
  const text = v => typeof v === "number" ? String(+v.toPrecision(4)) : String(v);
  const distinct = (rows, name) => {
    const found = [...new Set(rows.map(row => value(row, name)).filter(v => v !== null))];
    return found.every(v => typeof v === "number") ? found.sort((a, b) => a - b) : found;
  };
  const make = (tag, attributes, parent, content) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, v] of Object.entries(attributes)) element.setAttribute(key, v);
    if (content !== undefined) element.textContent = content;
    parent.append(element);
    return element;
  };
  const ticks = (low, high) => {
    const step = 10 ** Math.floor(Math.log10((high - low) / 4)), by = [1, 2, 5, 10].map(m => m * step).find(s => (high - low) / s <= 5);
    const found = [];
    for (let t = Math.ceil(low / by) * by; t <= high + 1e-9 * by; t += by) found.push(+t.toPrecision(12));
    return found;
  };

  function draw() {
    const [x, y, colour, facet] = ["x", "y", "colour", "facet"].map(id => pick(id).value);
    const span = interval(y), rows = DATA.rows.filter(row => typeof value(row, y) === "number" && value(row, x) !== null);
    const low = row => span ? span[0](row) : value(row, y), high = row => span ? span[1](row) : value(row, y);
    const xs = distinct(rows, x), groups = colour === NONE ? [null] : distinct(rows, colour);
    const numeric = xs.length > 0 && xs.every(v => typeof v === "number");
    let [y0, y1] = [Math.min(...rows.map(low)), Math.max(...rows.map(high))];
    if (!(y1 > y0)) [y0, y1] = [y0 - 1, y1 + 1];
    [y0, y1] = [y0 - 0.05 * (y1 - y0), y1 + 0.05 * (y1 - y0)];
    const [x0, x1] = numeric && xs.length > 1 ? [xs[0], xs.at(-1)] : [0, Math.max(1, xs.length - 1)];
    const px = v => LEFT + 20 + (W - LEFT - RIGHT - 40) * ((numeric && xs.length > 1 ? v : xs.indexOf(v)) - x0) / (x1 - x0);
    const py = v => TOP + (H - TOP - BOTTOM) * (y1 - v) / (y1 - y0);
    pick("facets").replaceChildren();
    for (const part of facet === NONE ? [null] : distinct(rows, facet)) {
      const holder = document.createElement("div");
      if (part !== null) holder.append(Object.assign(document.createElement("h3"), {textContent: `${facet} = ${text(part)}`}));
      const svg = make("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${y} against ${x}`}, holder);
      make("path", {d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}`, fill: "none", stroke: "#1b1b1b"}, svg);
      for (const t of ticks(y0, y1)) {
        make("path", {d: `M${LEFT - 4} ${py(t)}H${W - RIGHT}`, stroke: "#e3e3e3"}, svg);
        make("text", {x: LEFT - 7, y: py(t) + 4, "text-anchor": "end"}, svg, text(t));
      }
      const shown = xs.length <= 8 ? xs : numeric ? ticks(x0, x1) : xs.filter((_, i) => i % Math.ceil(xs.length / 8) === 0);
      for (const t of shown) make("text", {x: px(t), y: H - BOTTOM + 16, "text-anchor": "middle"}, svg, text(t).slice(0, 18));
      make("text", {x: (LEFT + W) / 2, y: H - 8, "text-anchor": "middle", "font-weight": 600}, svg, x);
      for (const row of rows.filter(row => part === null || value(row, facet) === part)) {
        const group = colour === NONE ? 0 : groups.indexOf(value(row, colour));
        const shift = (group - (groups.length - 1) / 2) * Math.min(6, 24 / groups.length);
        const [cx, fillColour] = [px(value(row, x)) + shift, COLOURS[group % COLOURS.length]];
        if (span) make("path", {d: `M${cx} ${py(low(row))}V${py(high(row))}`, stroke: fillColour, "stroke-width": 1.3}, svg);
        const fill = value(row, "converged") === true ? fillColour : "#fff";
        const dot = make("circle", {cx, cy: py(value(row, y)), r: 3.4, fill, stroke: fillColour, "stroke-width": 1.3}, svg);
        make("title", {}, dot, `${row[0]}: ${DATA.swept.map(n => `${n} = ${text(value(row, n))}`).join(", ")}; ${y} ${text(value(row, y))}`);
      }
      pick("facets").append(holder);
    }
    pick("legend").replaceChildren();
    groups.forEach((group, i) => {
      if (group === null) return;
      const line = document.createElement("span");
      line.style.color = COLOURS[i % COLOURS.length];
      line.textContent = `● ${colour} = ${text(group)}`;
      pick("legend").append(line);
    });
    const left = DATA.rows.length - rows.length, open = rows.some(row => value(row, "converged") !== true);
    pick("caption").textContent = `${y} of each run${span ? `, ${span[2]}` : ""}.` 
      + (open ? " Hollow circles are runs that did not converge." : "") + (left ? ` Runs without this result, which are not shown: ${left}.` : "");
  }
  for (const id of ["x", "y", "colour", "facet"]) pick(id).addEventListener("change", draw);
  draw();

  const body = document.querySelector("#runs tbody"), lines = [...body.rows];
  let last = null;
  document.querySelectorAll("#runs th button").forEach(button => button.addEventListener("click", () => {
    const i = at[button.dataset.column], sign = last === i ? -1 : 1;
    last = sign === 1 ? i : null;
    const key = line => DATA.rows[lines.indexOf(line)][i];
    [...body.rows].sort((a, b) => {
      const [u, v] = [key(a), key(b)];
      if (u === null || v === null) return (u === null) - (v === null);
      return sign * (typeof u === "number" && typeof v === "number" ? u - v : String(u).localeCompare(String(v)));
    }).forEach(line => body.append(line));
    document.querySelectorAll("#runs th").forEach(th => th.removeAttribute("aria-sort"));
    button.closest("th").setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  }));
})();
