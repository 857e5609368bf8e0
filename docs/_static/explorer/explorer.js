// The explorer's page: controls, address, sentence and drawings. All formulas are in formulas.js.
"use strict";

(() => {
  const form = document.getElementById("explorer-controls");
  if (!form) return;
  const control = (name) => form.elements.namedItem(name);
  const slider = (name) => form.querySelector(`[data-of="${name}"]`);
  const places = (name) => document.querySelectorAll(`[data-say="${name}"]`);

  // What may be set: the largest numbers are those for which a drawing takes less than a second.
  const FIELDS = {
    D: { what: "the hidden size D", low: 1, high: 1e6, whole: true },
    V: { what: "the vocabulary size V", low: 2, high: 1e7, whole: true },
    c: { what: "the softcap c", low: 0.1, high: 1000, optional: true },
    m: { what: "the norm product m", low: 0.1, high: 5000, log: true },
    T: { what: "the temperature T", low: 0.1, high: 20, log: true },
    b: { what: "the label smoothing b", low: 0.001, high: 0.99, slide: [0.001, 0.5] },
  };
  const START = { m: "10", T: "1", b: "0.1" };
  const BOUNDS = {
    simplex: ["theory.html#a2-every-token-at-once", "by the norms (A2)"],
    rank: ["theory.html#a3-the-rank-enters", "by norms and hidden size (A3)"],
    packing: ["theory.html#a6-what-geometry-alone-costs", "by packing the rows (A6)"],
    softcap: ["theory.html#c2-temperature-and-softcap", "by norms and softcap (C2)"],
  };

  // Numbers as text.
  const digits = (x, n = 3) => {
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) {
      const [mantissa, power] = x.toExponential(n - 1).split("e");
      return `${Number(mantissa)}·10${superscript(Number(power))}`;
    }
    const text = String(Number(x.toPrecision(Math.max(n, Math.ceil(Math.log10(Math.abs(x) + 1))))));
    return text.replace("-", "−");
  };
  const superscript = (n) => String(n).replace(/[-\d]/g, (k) => (k === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[k]));
  const chance = (p) => {
    if (1 - p < 1e-9) return "1 − 10⁻⁹ or more";
    return p > 0.999 ? p.toFixed(Math.min(9, Math.ceil(-Math.log10(1 - p)) + 1)) : p < 0.01 ? digits(p, 2) : p.toFixed(3);
  };
  /** Three digits, the last ones shown even if 0. */
  const three = (x) => (x > 1e-3 && x < 1e6 ? x.toFixed(x < 1 ? 3 : x < 9.995 ? 2 : x < 99.95 ? 1 : 0) : digits(x));
  const thousands = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u2009");

  // State: what the controls say, or null and a message.
  function read() {
    const state = {};
    for (const [name, { what, low, high, whole, optional }] of Object.entries(FIELDS)) {
      const text = control(name).value.trim().replace(",", ".");
      const value = optional && text === "" ? null : text === "" ? NaN : Number(text);
      const wrong = value !== null && !(value >= low && value <= high && (!whole || Number.isInteger(value)));
      control(name).setAttribute("aria-invalid", wrong);
      if (wrong && !state.error) {
        const range = `${whole ? "a whole number " : ""}between ${thousands(low)} and ${thousands(high)}`;
        state.error = `${what} must be ${range}${optional ? ", or empty for none" : ""}; it is "${text}"`;
      }
      state[name] = value;
    }
    return state;
  }

  // Address: #head=...&m=...; a head that is not in the list is given by D, V and c.
  function toAddress() {
    const parts = new URLSearchParams();
    const head = control("head").value;
    for (const name of head ? ["head", "m", "T", "b"] : Object.keys(FIELDS)) {
      if (control(name).value !== "") parts.set(name, control(name).value.trim());
    }
    return `#${parts.toString().replaceAll("%2F", "/")}`;
  }
  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const own = given.has("D") || given.has("V");
    control("head").value = own ? "" : (given.get("head") ?? measured());
    if (!own && control("head").selectedIndex < 0) control("head").value = measured();
    for (const name of Object.keys(FIELDS)) control(name).value = START[name] ?? "";
    takeHead();
    for (const name of Object.keys(FIELDS)) {
      if (given.has(name)) control(name).value = given.get(name);
    }
    matchHead();
  }
  /** The head whose norm product was measured: what the page says at first is then true of a model. */
  function measured() {
    return [...control("head").options].find((option) => option.dataset.m !== undefined).value;
  }
  /** Shape, and the norm product where it was measured, of the head that is chosen. */
  function takeHead() {
    const { d, v, c, m } = control("head").selectedOptions[0].dataset;
    if (d === undefined) return;
    [control("D").value, control("V").value, control("c").value] = [d, v, c ?? ""];
    if (m !== undefined) control("m").value = m;
  }
  /** Say "your own numbers" where the shape is no longer that of the head. */
  function matchHead() {
    const { d, v, c } = control("head").selectedOptions[0].dataset;
    const same = d === control("D").value && v === control("V").value && (c ?? "") === control("c").value;
    if (d !== undefined && !same) control("head").value = "";
  }

  /** Everything that the page says of a state. */
  function judge({ m, V, D, T, c, b }) {
    const cap = formulas.ceiling(m, V, D, T, c);
    const asked = formulas.optimalGap(b, V);
    const reached = formulas.reachedGap(m, V, D, T, c);
    const [needed, enough] = formulas.neededNorms(V, D, T, c, b);
    const verdict = cap.gap <= asked ? "inert" : reached >= asked ? "acts" : "open";
    const star = formulas.restoringTemperature(m, V, b, c);
    return { cap, asked, reached, needed, enough, verdict, star, temperatures: formulas.actingTemperatures(V, D, c, b) };
  }

  /** The verdict in words: exact for balanced deterministic targets where C1 holds, else what to expect. */
  function verdictOf({ V, D, c }, { verdict }) {
    const exact = D >= V - 1 && c === null;
    if (verdict === "inert") return `Smoothing is ${exact ? "" : "expected to be "}inert: the norms do not allow what it asks for.`;
    if (verdict === "acts") return `Smoothing ${exact ? "acts" : "is expected to act"}: the norms allow more than it asks for.`;
    return "Norms and shape alone do not say whether smoothing acts.";
  }
  function sentence(state, found) {
    const { m, V, D, T, b } = state;
    const { cap, asked, needed, enough, verdict, star, temperatures } = found;
    const warm = temperatures.warmest(m);
    const target = formulas.optimalConfidence(b, V);
    const head = `norm product ${digits(m)}, hidden size ${thousands(D)} and vocabulary size ${thousands(V)}`;
    const at = `At training temperature ${digits(T)}`;
    const allowed =
      1 - cap.confidence < 1e-9
        ? `${at} a head with ${head} can be all but certain of every token: its ceiling is a gap of ${three(cap.gap)} nats`
        : `${at} no head with ${head} gives every token more than confidence ${chance(cap.confidence)}, a gap of ${three(cap.gap)} nats`;
    const first = `${allowed}; smoothing of ${digits(b)} asks for ${chance(target)}, a gap of ${three(asked)} nats.`;
    const cooler = Math.abs(warm / star - 1) > 0.01 ? `${three(warm)} (T* = ${three(star)} by the norms alone)` : `T* = ${three(star)}`;
    if (verdict === "inert") {
      const norms = Number.isFinite(needed) ? `does, and so does a norm product above ${three(needed)}.` : "does; no norm product does, as the softcap holds the gap down.";
      return `${first} A head without smoothing is below that already. To bring it within reach, a training temperature below ${cooler} ${norms}`;
    }
    if (verdict === "acts") {
      const fall = chance(cap.confidence - target);
      return `${first} Smoothing lowers confidence by up to ${fall} where targets are deterministic. It stops acting at a training temperature above ${cooler}, or with a norm product below ${three(needed)}.`;
    }
    const reach = Number.isFinite(enough) ? `random rows do from a norm product of ${three(enough)} on` : "random rows do at no norm product";
    return `${first} The ceiling is above that, but no head is known to reach it (${reach}): measure the activity index of your model.`;
  }

  function say(state, found) {
    const set = (name, text) => places(name).forEach((place) => (place.textContent = text));
    set("verdict", verdictOf(state, found));
    set("sentence", sentence(state, found));
    set("gap", digits(found.cap.gap, 4));
    set("confidence", chance(found.cap.confidence));
    set("reachedGap", digits(found.reached, 4));
    set("reachedConfidence", chance(formulas.gapToConfidence(found.reached, state.V)));
    set("askedGap", digits(found.asked, 4));
    set("askedConfidence", chance(formulas.optimalConfidence(state.b, state.V)));
    set("rho", three(found.star / state.T));
    set("star", three(found.star));
    const between = [found.needed, found.enough].map((x) => digits(x, 4));
    set("needed", between[0] === between[1] ? between[0] : `${between[0]} at least, ${between[1]} is enough`);
    const [href, text] = BOUNDS[found.cap.name];
    places("bound").forEach((place) => place.replaceChildren(Object.assign(document.createElement("a"), { href, textContent: text })));
    document.querySelector(".explorer-says").dataset.verdict = found.verdict;
  }

  /** Draw and say the state; one that is wrong is said, unless it is still being typed. */
  function show(typing = false) {
    const state = read();
    const message = form.querySelector(".explorer-error");
    message.hidden = !state.error || typing;
    message.textContent = message.hidden ? "" : state.error;
    if (state.error) return;
    for (const name of ["m", "T", "b"]) {
      const { log } = FIELDS[name];
      slider(name).value = log ? Math.log10(state[name]) : state[name];
      slider(name).setAttribute("aria-valuetext", control(name).value);
    }
    const found = judge(state);
    say(state, found);
    drawings.confidence(document.querySelector('[data-draw="confidence"]'), state, found);
    drawings.temperature(document.querySelector('[data-draw="temperature"]'), state, found);
  }

  // Wiring.
  let waiting;
  function changed(typing = false) {
    show(typing);
    places("copied").forEach((place) => (place.textContent = ""));
    clearTimeout(waiting);
    waiting = setTimeout(() => read().error ?? location.replace(toAddress()), 300); // not at each step of a slider: browsers refuse that
  }
  function set(name, value) {
    control(name).value = String(Number(value.toPrecision(3)));
    changed();
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target.dataset.of) {
      const value = Number(target.value);
      return set(target.dataset.of, FIELDS[target.dataset.of].log ? 10 ** value : value);
    }
    if (target.name === "head") takeHead();
    else matchHead();
    return changed(true);
  });
  form.addEventListener("change", () => show());
  for (const name of ["m", "T", "b"]) {
    const { low, high, log, slide } = FIELDS[name];
    const [from, to] = slide ?? (log ? [Math.log10(low), Math.log10(high)] : [low, high]);
    Object.assign(slider(name), { min: from, max: to, step: log ? 0.01 : 0.001 });
  }
  drawings.onPick((m, T) => {
    control("m").value = String(Number(Math.min(5000, Math.max(0.1, m)).toPrecision(3)));
    if (T === undefined) changed();
    else set("T", Math.min(20, Math.max(0.1, T)));
  });
  document.querySelector('[data-do="copy"]').addEventListener("click", async () => {
    location.replace(toAddress());
    let text = "copied";
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      text = `copy it from the address bar: ${location.href}`;
    }
    places("copied").forEach((place) => (place.textContent = text));
  });
  addEventListener("hashchange", () => {
    if (location.hash !== toAddress()) {
      fromAddress();
      show();
    }
  });
  new ResizeObserver(() => read().error || show()).observe(document.querySelector('[data-draw="confidence"]'));
  fromAddress();
  show();
})();
