// The formulas of the explorer, in float64, as `analysis` has them: A2, A3, C0 ... are the statements of theory.html.
// A classic script, since browsers refuse modules to a page that is opened from a folder. tests/test_explorer.py
// compares every function with `analysis`.
//
// m: norm product, V: vocabulary size, D: hidden size, T: training temperature, c: softcap or null, b: label smoothing.
// Gaps are in nats.
"use strict";

const formulas = (() => {
  const GOLDEN = (Math.sqrt(5) - 1) / 2;

  /** Least value on [0, 1] of a unimodal function, by golden section, ends included. */
  function leastValue(f) {
    let low = 0;
    let high = 1;
    const ends = Math.min(f(low), f(high));
    let left = high - GOLDEN * (high - low);
    let right = low + GOLDEN * (high - low);
    let atLeft = f(left);
    let atRight = f(right);
    for (let step = 0; step < 60; step++) {
      if (atLeft <= atRight) {
        [high, right, atRight] = [right, left, atLeft];
        left = high - GOLDEN * (high - low);
        atLeft = f(left);
      } else {
        [low, left, atLeft] = [left, right, atRight];
        right = low + GOLDEN * (high - low);
        atRight = f(right);
      }
    }
    return Math.min(ends, atLeft, atRight);
  }

  /** Smallest x > 0 with risen(x), for a condition that stays true once it is; Infinity where x = 1e5 is not enough. */
  function firstWhere(risen, tolerance = 1e-12) {
    let low = 0;
    let high = 1;
    while (!risen(high)) {
      [low, high] = [high, 2 * high];
      if (high > 1e5) return Infinity;
    }
    while (high - low > tolerance * high) {
      const middle = (low + high) / 2;
      if (risen(middle)) high = middle;
      else low = middle;
    }
    return high;
  }

  const gapToConfidence = (gap, V) => 1 / (1 + Math.exp(Math.log(V - 1) - gap));
  const optimalConfidence = (b, V) => 1 - b + b / V; // C0
  const optimalGap = (b, V) => Math.log1p(((1 - b) * V) / b); // C0

  /** A3: what norms and rank allow; A2 where D >= V - 1. */
  function rankGap(m, V, D) {
    const rank = Math.min(D, V - 1);
    const logMeanExp = (a) => {
      const first = 2 - (a * V) / (V - 1);
      if (first <= 0) return -2 * m;
      const second = Math.max(4 - (4 * a * V) / (V - 1) + ((a * a * V) / (V - 1)) * (1 + 1 / rank), first * first);
      const mass = Math.min((first * first) / second, 1);
      const [rest, atom] = [Math.log1p(-mass), Math.log((first * first) / second) + (m * second) / first];
      const top = Math.max(rest, atom);
      return top + Math.log(Math.exp(rest - top) + Math.exp(atom - top)) - 2 * m;
    };
    return -leastValue(logMeanExp);
  }

  /** A6: what is left when V rows share a ball of D dimensions; matters where D < log V. */
  function packingGap(m, V, D) {
    const start = 2 / Math.expm1((Math.log(V) - Math.log1p(1e-9)) / D);
    const stop = Math.max(2, start);
    const logOdds = (x) => {
      const t = start + x * (stop - start);
      const logMu = Math.log(V) - D * Math.log1p(2 / t);
      return m * t - Math.log(Math.expm1(Math.max(logMu, 0)));
    };
    return leastValue(logOdds) + Math.log(V - 1);
  }

  /** C2: what norms and a softcap allow at any rank, by the concave envelope of c tanh(x / c). */
  function softcapGap(m, V, T, c) {
    if (c === null) return (m * (V / (V - 1))) / T;
    const s = m / c;
    let low = 0;
    let touch = s; // up to here the envelope is the chord from (-s, -tanh s)
    for (let step = 0; step < 60; step++) {
      const x = (low + touch) / 2;
      if ((Math.tanh(x) + Math.tanh(s)) * Math.cosh(Math.min(x, 300)) ** 2 > x + s) touch = x;
      else low = x;
    }
    const incline = 1 / Math.cosh(Math.min(touch, 300)) ** 2;
    const envelope = (x) => {
      const u = x / c;
      return c * (u >= touch ? Math.tanh(u) : Math.tanh(touch) + (u - touch) * incline);
    };
    const minusBound = (x) => -(envelope(m * (1 - 2 * x)) + envelope((m * (1 + (V - 2) * x)) / (V - 1)));
    return -leastValue(minusBound) / T;
  }

  /** The least proven ceiling on the gap of every token at once, and which bound it is. */
  function ceiling(m, V, D, T, c) {
    const half = c === null ? -Infinity : Math.log(V - 1); // under a softcap the others hold above p = 1/2
    const bounds = [
      [D < V - 1 ? "rank" : "simplex", Math.max(rankGap(m / T, V, D), half)],
      ["packing", Math.max(packingGap(m / T, V, D), half)],
    ];
    if (c !== null) bounds.push(["softcap", softcapGap(m, V, T, c)]);
    const [name, gap] = bounds.reduce((best, next) => (next[1] < best[1] ? next : best));
    return { name, gap, confidence: gapToConfidence(gap, V) };
  }

  /** Log of the mean of exp(m t), t the cosine of two random directions: 0F1(D / 2; m^2 / 4), every term positive. */
  function logKernelMean(m, D) {
    let term = 1;
    let sum = 1;
    let log = 0;
    for (let k = 0; term > 1e-17 * sum || k < m / 2; k++) {
      term *= (m * m) / 4 / ((k + 1) * (D / 2 + k));
      sum += term;
      if (sum > 1e200) {
        log += Math.log(sum);
        term /= sum;
        sum = 1;
      }
    }
    return log + Math.log(sum);
  }

  /** A4: the gap that random rows reach, at least, with every hidden state along its row (geometric mean). */
  function randomRowsGap(m, D, c) {
    return (c === null ? m : c * Math.tanh(m / c)) - logKernelMean(m, D);
  }

  /** What some head of norm product up to m reaches: random rows, or at D >= V - 1 the simplex, which attains A2. */
  function reachedGap(m, V, D, T, c) {
    const capped = (x) => (c === null ? x : c * Math.tanh(x / c));
    const simplex = D >= V - 1 ? (capped(m) + capped(m / (V - 1))) / T : 0;
    if (c === null) return Math.max(simplex, randomRowsGap(m / T, D, null));
    // under a softcap the largest norms are not the best ones
    return Math.max(simplex, -leastValue((x) => -randomRowsGap((x * m) / T, D, c / T)));
  }

  /** C2: below this training temperature the norms allow the gap that smoothing asks for (exact at D >= V - 1). */
  const restoringTemperature = (m, V, b, c) => softcapGap(m, V, 1, c) / optimalGap(b, V);
  /** C1: the gap allowed over the gap asked for. */
  const effectivenessRatio = (m, V, b, T, c) => restoringTemperature(m, V, b, c) / T;

  /** Below the first norm product no head reaches the gap that smoothing asks for; from the second on some head does. */
  function neededNorms(V, D, T, c, b) {
    const asked = optimalGap(b, V);
    return [
      firstWhere((m) => ceiling(m, V, D, T, c).gap >= asked),
      firstWhere((m) => reachedGap(m, V, D, T, c) >= asked),
    ];
  }

  /**
   * Training temperatures, each a function of m: from the warmest on no head reaches the gap that smoothing asks for (T*,
   * or less where the rank matters), up to the surest some head does.
   */
  function actingTemperatures(V, D, c, b) {
    const asked = optimalGap(b, V);
    const [needed, enough] = neededNorms(V, D, 1, null, b);
    const linearHolds = c === null || asked >= Math.log(V - 1); // see ceiling
    const warmest = (m) => Math.min(restoringTemperature(m, V, b, c), linearHolds ? m / needed : Infinity);
    const reaches = (m) => 1 / firstWhere((cold) => reachedGap(m, V, D, 1 / cold, c) >= asked, 1e-3);
    return { warmest, surest: c === null ? (m) => m / enough : reaches };
  }

  return {
    actingTemperatures,
    ceiling,
    effectivenessRatio,
    gapToConfidence,
    logKernelMean,
    neededNorms,
    optimalConfidence,
    optimalGap,
    randomRowsGap,
    reachedGap,
    restoringTemperature,
    softcapGap,
  };
})();
