// The explorer's two drawings, as SVG of the width that the page has, so that text keeps its size on a phone.
"use strict";

const drawings = (() => {
  const MARGIN = { left: 48, right: 22, top: 30, bottom: 46 };
  const POINTS = 160;
  const LINE = 2.5; // pixels, as in explorer.css
  let pick = () => {};

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  /** Empty axes: norm product to the right in decades, what is drawn upwards. */
  function axes(place, { range, up, logarithmic, ticks, title, description }) {
    const width = Math.max(place.clientWidth, 260);
    const height = Math.round(Math.min(340, Math.max(250, 0.55 * width)));
    const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description });
    const bottom = height - MARGIN.bottom;
    const right = width - MARGIN.right;
    const [from, to] = range.map(Math.log10);
    const scale = logarithmic ? Math.log10 : (y) => y;
    const [low, high] = up.map(scale);
    const x = (m) => MARGIN.left + ((Math.log10(m) - from) / (to - from)) * (right - MARGIN.left);
    const y = (value) => bottom - ((scale(value) - low) / (high - low)) * (bottom - MARGIN.top);
    const decade = (right - MARGIN.left) / (to - from);

    const text = (at, words, more = {}) => svg.append(element("text", { x: at[0], y: at[1], ...more }, words));
    for (const value of ticks) {
      svg.append(element("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
      text([MARGIN.left - 7, y(value) + 4], String(value), { "text-anchor": "end" });
    }
    for (let power = Math.round(from); power <= to + 1e-9; power++) {
      for (const digit of power < to ? [1, 2, 5] : [1]) {
        const m = Number(`${digit}e${power}`);
        svg.append(element("line", { class: digit === 1 ? "grid" : "tick", x1: x(m), x2: x(m), y1: digit === 1 ? MARGIN.top : bottom - 4, y2: bottom }));
        if (digit === 1 || decade > 110) text([x(m), bottom + 17], String(m), { "text-anchor": "middle" });
      }
    }
    text([4, 16], title, { class: "title" });
    text([(MARGIN.left + right) / 2, height - 6], "norm product m", { class: "title", "text-anchor": "middle" });
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const m = 10 ** (from + ((event.clientX - box.left - MARGIN.left) / (right - MARGIN.left)) * (to - from));
      const share = (bottom - (event.clientY - box.top)) / (bottom - MARGIN.top);
      pick(m, logarithmic ? 10 ** (low + share * (high - low)) : undefined);
    });
    const inside = element("clipPath", { id: `inside-${place.dataset.draw}` });
    inside.append(element("rect", { x: MARGIN.left, y: MARGIN.top, width: right - MARGIN.left, height: bottom - MARGIN.top }));
    const lines = element("g", { "clip-path": `url(#${inside.id})` });
    svg.append(inside, lines);
    place.replaceChildren(svg);
    return { svg, lines, x, y, top: MARGIN.top, bottom, right };
  }

  const spread = ([low, high], n) => Array.from({ length: n + 1 }, (_, i) => low * (high / low) ** (i / n));
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

  /** Decades around your head and around where the ceiling rises. */
  function decades({ m, V, T }) {
    const rises = T * Math.log(V);
    return [10 ** Math.floor(Math.log10(Math.min(m, rises / 3))), 10 ** Math.ceil(Math.log10(Math.max(m, 10 * rises)))];
  }

  function yourHead(plot, m, value) {
    plot.svg.append(element("line", { class: "head", x1: plot.x(m), x2: plot.x(m), y1: plot.top, y2: plot.bottom }));
    plot.svg.append(element("circle", { class: "head", cx: plot.x(m), cy: plot.y(value), r: 5.5 }));
  }

  /** The greatest distance between two lines of the same x, across them: their height times the cosine of the slope. */
  function thickness(upper, lower) {
    const across = upper.slice(1).map(([x, y], i) => (lower[i + 1][1] - y) * Math.cos(Math.atan2(y - upper[i][1], x - upper[i][0])));
    return Math.max(...across);
  }

  /** The legend names what is drawn, and nothing else. */
  function sayKey(place, name, drawn) {
    place.parentElement.querySelector(`.key.${name}`).hidden = !drawn;
  }

  /** The legend's words for the band, which the line of the ceiling hides where it is no thicker. */
  function sayBand(place, pixels) {
    const key = place.parentElement.querySelector(".key.band");
    key.classList.toggle("thin", pixels < LINE);
    key.textContent = pixels < LINE ? "the best head lies less than the line's width from it" : "the best head lies in this band";
  }

  /** Ceiling on the confidence against the norm product, with what smoothing asks for. */
  function confidence(place, state, found) {
    const { m, V, D, T, c, b } = state;
    const range = decades(state);
    const target = formulas.optimalConfidence(b, V);
    const plot = axes(place, {
      range,
      up: [0, 1],
      ticks: [0, 0.25, 0.5, 0.75, 1],
      title: "confidence in every token",
      description: "Ceiling on the confidence against the norm product; the sentence and the table say the same in words.",
    });
    sayKey(place, "acts", found.enough < range[1]);
    if (found.enough < range[1]) {
      const left = plot.x(Math.max(found.enough, range[0]));
      plot.lines.append(element("rect", { class: "acts", x: left, y: plot.top, width: plot.right - left, height: plot.bottom - plot.top }));
    }
    const norms = spread(range, POINTS);
    const upper = norms.map((n) => [plot.x(n), plot.y(formulas.ceiling(n, V, D, T, c).confidence)]);
    const lower = norms.map((n) => [plot.x(n), plot.y(formulas.gapToConfidence(formulas.reachedGap(n, V, D, T, c), V))]);
    sayBand(place, thickness(upper, lower));
    plot.lines.append(element("path", { class: "band", d: `${path([...upper, ...lower.reverse()])}Z` }));
    plot.lines.append(element("path", { class: "ceiling", d: path(upper) }));
    plot.lines.append(element("path", { class: "asked", d: `M${plot.x(range[0])} ${plot.y(target)}H${plot.right}` }));
    yourHead(plot, m, found.cap.confidence);
  }

  /** Where smoothing acts: training temperature against norm product. */
  function temperature(place, state, { temperatures }) {
    const range = decades(state);
    const plot = axes(place, {
      range,
      up: [0.1, 20],
      logarithmic: true,
      ticks: [0.1, 0.2, 0.5, 1, 2, 5, 10, 20],
      title: "training temperature T",
      description: "Where smoothing acts: training temperature against norm product; the sentence says it of your head.",
    });
    const norms = spread(range, state.c === null ? 8 : 40); // straight lines without a softcap
    const line = (height) => norms.map((n) => [plot.x(n), plot.y(height(n))]);
    const [warmest, surest] = [line(temperatures.warmest), line(temperatures.surest)];
    sayKey(place, "open", thickness(warmest, surest) > LINE);
    sayKey(place, "acts", surest.some(([, y]) => y < plot.bottom));
    const corners = `L${plot.right} ${plot.bottom}L${plot.x(range[0])} ${plot.bottom}Z`;
    plot.lines.append(element("path", { class: "open", d: path(warmest) + corners }));
    plot.lines.append(element("path", { class: "acts", d: path(surest) + corners }));
    plot.lines.append(element("path", { class: "star", d: path(line((n) => formulas.restoringTemperature(n, state.V, state.b, state.c))) }));
    yourHead(plot, state.m, state.T);
  }

  return { confidence, temperature, onPick: (then) => (pick = then) };
})();
