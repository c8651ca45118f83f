/** Draws where in the model the energy of two files lies: bars for its parts, and for each block. */

import { make } from "../shared/dom.mjs";
import { heading } from "../report/grid.mjs";
import { percentOf, tellShare } from "../report/measure.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("../report/measure.mjs").Measured} Measured */
/** @typedef {import("../report/measure.mjs").Change} Change */
/** @typedef {number | null} Share in percent; null: not known */
/** @typedef {{name: string, blocks: {number: number, shares: [Share, Share]}[]}} Group of blocks, or what is in none: "" */

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, TOP, BOTTOM, LEFT] = [120, 8, 20, 34]; // pixels: of the bars, and around them
const WIDEST = 820;
const [LEAST_STEP, MOST_STEP] = [10, 26];
const LABEL = 18; // pixels that the number of a block needs

/**
 * @param {import("./layers.mjs").Network[]} networks
 * @param {Measured} measured
 * @returns {HTMLElement[]}
 */
export function energyParts(networks, measured) {
  const all = networks.map(({ component, title }) => ({ title, groups: groupsOf(component, measured) }));
  const told = all.filter(({ groups }) => groups.length);
  if (!told.length) return [];
  const blocks = told.flatMap(({ groups }) => groups.flatMap((group) => group.blocks));
  const most = niceAbove(Math.max(...blocks.flatMap(({ shares }) => shares.map(Number))));
  const charts = told.flatMap(({ title, groups }) => {
    const drawn = groups.filter(({ name, blocks }) => name && blocks.length > 1).map((group) => chartOf(group, most));
    return drawn.length ? [make("h4", "", title), make("div", "locksmith-charts", ...drawn)] : [];
  });
  const hint = make("p", "locksmith-quiet", say("compareEnergyHint"));
  return [make("h3", "", say("compareEnergy")), hint, partTable(told), ...charts, numbers(told)];
}

/**
 * @param {string} component
 * @param {Measured} measured
 * @returns {Group[]}
 */
function groupsOf(component, measured) {
  const groups = /** @type {Map<string, Group>} */ (new Map());
  for (const change of measured.blocks) {
    if (change.component !== component) continue;
    const group = groups.get(change.blocks) ?? { name: change.blocks, blocks: [] };
    groups.set(change.blocks, group);
    group.blocks.push({ number: change.number, shares: sharesOf(change, measured) });
  }
  return [...groups.values()];
}

/**
 * @param {Change} change
 * @param {Measured} measured
 * @returns {[Share, Share]} of the energy of A and of B
 */
function sharesOf({ energy_a: a, energy_b: b }, measured) {
  return [a === null ? a : percentOf(a, measured.norm_a), b === null ? b : percentOf(b, measured.norm_b)];
}

/**
 * @param {Share[]} shares
 * @returns {Share} of those that are known
 */
function sumOf(shares) {
  const known = shares.filter((share) => share !== null);
  return known.length ? known.reduce((sum, share) => sum + share, 0) : null;
}

/**
 * A bar for A and one for B for each part of the networks.
 *
 * @param {{title: string, groups: Group[]}[]} told
 */
function partTable(told) {
  const parts = told.flatMap(({ title, groups }) =>
    groups.map(({ name, blocks }) => {
      const sums = [0, 1].map((side) => sumOf(blocks.map(({ shares }) => shares[side])));
      return { name: told.length > 1 ? `${title}: ${name || say("heatOutside")}` : name || say("heatOutside"), sums };
    })
  );
  const most = Math.max(...parts.flatMap(({ sums }) => sums.map(Number)));
  const rows = parts.map(({ name, sums }) => {
    const cells = sums.map((sum, side) => make("td", "", barOf(Number(sum) / (most || 1), side), percent(sum)));
    return make("tr", "", heading("row", name), ...cells);
  });
  const sides = ["A", "B"].map((side) => heading("col", side));
  sides.forEach((side, at) => (side.className = `locksmith-side-${"ab"[at]}`));
  const head = make("tr", "", make("td", ""), ...sides);
  return make("table", "locksmith-parts", make("thead", "", head), make("tbody", "", ...rows));
}

/**
 * @param {number} share from 0 to 1
 * @param {number} side
 */
function barOf(share, side) {
  const bar = make("span", `locksmith-bar locksmith-side-${"ab"[side]}`);
  bar.style.width = `${Math.round(120 * share)}px`;
  return bar;
}

/**
 * @param {Group} group
 * @param {number} most percent at the top
 */
function chartOf({ name, blocks }, most) {
  const last = Math.max(...blocks.map(({ number }) => number));
  const step = Math.max(LEAST_STEP, Math.min(MOST_STEP, (WIDEST - LEFT) / (last + 1)));
  const [width, height] = [LEFT + step * (last + 1) + 4, TOP + HEIGHT + BOTTOM];
  const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", class: "locksmith-chart" });
  chart.setAttribute("aria-label", say("compareChart", { blocks: name }));
  const bars = blocks.map((block) => barsOf(name, block, { step, most }));
  chart.append(textNode("desc", peaksOf(blocks)), ...axisOf(width, most), blockWord(height), ...bars);
  const every = step >= LABEL ? 1 : 5;
  for (let number = 0; number <= last; number += every) {
    const label = textNode("text", String(number), { x: LEFT + step * (number + 0.5), y: height - 3, "text-anchor": "middle" });
    chart.append(label);
  }
  const caption = make("figcaption", "", make("code", "", name));
  const box = make("div", "locksmith-wide", chart);
  return make("figure", "", caption, box);
}

/**
 * Where A and B are highest.
 *
 * @param {Group["blocks"]} blocks
 */
function peaksOf(blocks) {
  const peaks = ["A", "B"].map((side, at) => {
    const { number, shares } = blocks.reduce((best, block) => (Number(block.shares[at]) > Number(best.shares[at]) ? block : best));
    return say("comparePeak", { side, block: number, share: percent(shares[at]) });
  });
  return peaks.join(" ");
}

/**
 * @param {string} name of the blocks
 * @param {{number: number, shares: [Share, Share]}} block
 * @param {{step: number, most: number}} scale
 */
function barsOf(name, { number, shares }, { step, most }) {
  const x = LEFT + step * number;
  const [a, b] = shares.map(percent);
  const bars = shares.map((share, side) => {
    const high = (HEIGHT * Number(share)) / most;
    const wide = step / 2 - 1.5;
    const place = { x: x + 1 + side * (wide + 1), y: TOP + HEIGHT - high, width: wide, height: high };
    return draw("rect", { ...place, class: `locksmith-fill-${"ab"[side]}` });
  });
  // To be pointed at where a bar is low.
  const under = draw("rect", { x, y: TOP, width: step, height: HEIGHT, class: "locksmith-under" });
  return draw("g", {}, textNode("title", say("compareBars", { block: `${name}.${number}`, a, b })), under, ...bars);
}

/**
 * @param {number} width
 * @param {number} most
 */
function axisOf(width, most) {
  return [0, 0.5, 1].flatMap((part) => {
    const y = TOP + HEIGHT * (1 - part);
    const line = draw("line", { x1: LEFT, x2: width, y1: y, y2: y, class: part ? "locksmith-rule" : "locksmith-base" });
    return [line, textNode("text", `${Number((most * part).toPrecision(2))} %`, { x: LEFT - 4, y: y + 4, "text-anchor": "end" })];
  });
}

/**
 * What the numbers below the bars are.
 *
 * @param {number} height
 */
function blockWord(height) {
  return textNode("text", say("compareBlock"), { x: LEFT - 4, y: height - 3, "text-anchor": "end" });
}

/**
 * All of it in numbers, for those who cannot see bars or want them exactly.
 *
 * @param {{title: string, groups: Group[]}[]} told
 */
function numbers(told) {
  const rows = told.flatMap(({ groups }) =>
    groups.flatMap(({ name, blocks }) =>
      blocks.map(({ number, shares }) => {
        const block = name ? `${name}.${number}` : say("heatOutside");
        return make("tr", "", heading("row", block), ...shares.map((share) => make("td", "", percent(share))));
      })
    )
  );
  const head = make("tr", "", ...[say("compareBlock"), "A", "B"].map((word) => heading("col", word)));
  const table = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  return make("details", "", make("summary", "", say("compareNumbers")), table);
}

/** @param {Share} share */
function percent(share) {
  return share === null ? say("notKnown") : tellShare(share / 100, 1);
}

/**
 * The next number above that is 1, 2 or 5 with zeros.
 *
 * @param {number} number
 */
function niceAbove(number) {
  const unit = 10 ** Math.floor(Math.log10(number || 1));
  return unit * ([1, 2, 5, 10].find((digit) => digit * unit >= number) ?? 10);
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...Element} children
 */
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * @param {string} tag
 * @param {string} text
 * @param {Record<string, string | number>} [attributes]
 */
function textNode(tag, text, attributes = {}) {
  const element = draw(tag, attributes);
  element.textContent = text;
  return element;
}
