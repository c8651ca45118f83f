/** Shows which layers a file trains, block by block, as tables that can be seen at a glance and read out. */

import { make } from "../shared/dom.mjs";
import { gridOf, layerHead, legendPart, makeLine, scaleOf, shaded, tellRanks } from "./grid.mjs";
import { placeKey, tellShare } from "./measure.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/**
 * How an untrained layer, one trained in part and a trained one look: class and sign; the marks are the report's. A trained one is
 * filled, and needs no sign beside.
 */
const MARKS = /** @type {Record<string, [string, string]>} */ ({
  0: ["locksmith-none", "\u00b7"],
  1: ["locksmith-some", "\u25e7"],
  2: ["", ""],
});
const MAX_CELLS = 20_000;
const LEAST = 0.2; // of the shade, which the lowest rank has

/**
 * A kind of layer; `words`: in a report that knows some; `block_ranks`: where blocks differ in them.
 *
 * @typedef {{name: string, words?: string, trained: string, ranks: number[], block_ranks?: number[][]}} Kind
 * @typedef {{name: string, count: number, kinds: Kind[]}} Blocks
 * @typedef {{component: string, title: string, modules: number, blocks: Blocks[]}} Network
 * @typedef {Record<string, Record<string, number>>} LayerWeights by network and layer: what its strength is multiplied with, if not 1
 */

/**
 * What is drawn beside what is trained: layer weights, and the energy of the layers where it was measured, by which they are
 * shaded then in place of their ranks.
 *
 * @typedef {{weights: LayerWeights, translations: import("../i18n/words.mjs").Translations,
 *   measured?: import("./measure.mjs").Measured, byEnergy?: boolean}} Drawn
 */

/**
 * A table for each group of blocks of each network a file touches.
 *
 * @param {Network[]} networks
 * @param {Drawn} drawn
 * @returns {DocumentFragment}
 */
export function heatMaps(networks, drawn) {
  const fragment = document.createDocumentFragment();
  const scale = drawn.byEnergy && drawn.measured ? energyScale(drawn.measured) : rankScale(networks);
  fragment.append(legendOf(scale, Object.keys(drawn.weights).length > 0));
  const line = makeLine();
  let left = MAX_CELLS;
  for (const { component, title, modules, blocks } of networks) {
    const grids = make("div", "locksmith-grids");
    fragment.append(make("h4", "", say("heatNetwork", { title, modules })), grids);
    for (const group of blocks.map(trainedOf).filter(({ kinds }) => kinds.length)) {
      left -= group.kinds.length * Math.max(group.count, 1);
      if (left >= 0) grids.append(tableOf(group, component, { ...drawn, scale, line }));
    }
  }
  fragment.append(line);
  return fragment;
}

/**
 * The group with the rows that tell something: none where nothing in it is trained, and outside of blocks only what is.
 *
 * @param {Blocks} group
 * @returns {Blocks}
 */
function trainedOf({ name, count, kinds }) {
  const trained = kinds.filter((kind) => /[^0]/.test(kind.trained));
  return { name, count, kinds: count && trained.length ? kinds : trained };
}

/** @param {string} mark */
function wordOf(mark) {
  return say({ 1: "heatPart", 2: "heatAll" }[mark] ?? "heatNone");
}

/**
 * How a layer is shaded: how strong its blue is, 0 to 1, and what stands in its cell.
 *
 * @typedef {{share: number, sign: string}} Shade
 * @typedef {{shadeOf: (kind: Kind, block: number, key: string) => Shade, least: number, words: string}} Scale `words`: of the legend
 */

/**
 * Ranks go by factors: 4 to 8 is as far as 64 to 128.
 *
 * @param {Network[]} networks
 * @returns {Scale}
 */
function rankScale(networks) {
  const kinds = networks.flatMap(({ blocks }) => blocks.flatMap((group) => group.kinds));
  const ranks = kinds.flatMap((kind) => [...(kind.block_ranks ?? [kind.ranks])].flatMap(topOf));
  const [least, most] = [Math.min(...ranks), Math.max(...ranks)];
  const plain = { share: 1, sign: "" };
  if (!(least < most)) return { shadeOf: () => plain, least: 1, words: "" };
  const shadeOf = (/** @type {Kind} */ kind, /** @type {number} */ block) => {
    const [rank] = topOf(ranksAt(kind, block));
    return rank ? { share: LEAST + (1 - LEAST) * (Math.log(rank / least) / Math.log(most / least)), sign: String(rank) } : plain;
  };
  return { shadeOf, least: LEAST, words: say("heatShade", { least, most }) };
}

/**
 * By the norm, of which the energy is the square: else all but a few layers would look alike.
 *
 * @param {import("./measure.mjs").Measured} measured
 * @returns {Scale}
 */
function energyScale(measured) {
  const most = Math.max(0, ...[...measured.layers.values()].map((change) => change.energy_a ?? 0));
  const shadeOf = (/** @type {Kind} */ _, /** @type {number} */ __, /** @type {string} */ key) => {
    const energy = measured.layers.get(key)?.energy_a ?? undefined;
    return energy === undefined ? { share: 0, sign: "?" } : { share: Math.sqrt(energy / most || 0), sign: "" };
  };
  return { shadeOf, least: 0, words: most ? say("heatShadeEnergy", { most: tellShare(most, measured.norm_a) }) : "" };
}

/**
 * @param {number[]} ranks
 * @returns {number[]} the highest, if there is any
 */
function topOf(ranks) {
  return ranks.length ? [Math.max(...ranks)] : [];
}

/**
 * @param {Kind} kind
 * @param {number} block
 */
function ranksAt(kind, block) {
  return kind.block_ranks?.[block] ?? kind.ranks;
}

/**
 * @param {Scale} scale
 * @param {boolean} isWeighted whether there are layer weights
 */
function legendOf(scale, isWeighted) {
  const words = /** @type {[string, string][]} */ ([["2", say("heatTrained")], ["1", say("heatPart")], ["0", say("heatUntrained")]]);
  const parts = words.map(([mark, word]) => legendPart([signOf("span", mark)], word));
  if (scale.words) parts.push(legendPart([scaleOf(scale.least)], scale.words));
  if (isWeighted) parts.push(legendPart([shaded(make("span", "", ".5"), 1)], say("heatWeight")));
  return make("p", "locksmith-legend-heat", ...parts);
}

/**
 * @template {"span" | "td"} Tag
 * @param {Tag} tag
 * @param {string} mark
 */
function signOf(tag, mark) {
  const [name, sign] = MARKS[mark] ?? MARKS[0];
  const cell = make(tag, name, sign);
  return mark === "2" ? shaded(cell, 1) : cell;
}

/**
 * @param {Blocks} group
 * @param {string} component
 * @param {Drawn & {scale: Scale, line: HTMLElement}} drawn
 */
function tableOf(group, component, drawn) {
  const { name, count, kinds } = group;
  const keyOf = (/** @type {Kind} */ kind, /** @type {number} */ block) => placeKey(component, name, block, kind.name);
  const rows = kinds.map((kind) => {
    const facts = [tellRanks(kind.ranks), blocksOf(kind.trained)].map((fact) => make("td", "", fact));
    const cells = [...(count ? kind.trained : "")].map((mark, block) => {
      const cell = signOf("td", mark);
      cell.ariaLabel = wordOf(mark);
      if (mark === "2") paint(cell, drawn.scale.shadeOf(kind, block, keyOf(kind, block)));
      weigh(cell, drawn.weights[component]?.[layerAt(name, block, kind)]);
      return cell;
    });
    return make("tr", "", layerHead(kind.name, kind.words ?? "", drawn.translations), ...facts, ...cells);
  });
  const tell = (/** @type {number} */ row, /** @type {number} */ block) => {
    const kind = kinds[row];
    const module = layerAt(name, block, kind);
    const weight = drawn.weights[component]?.[module];
    return cellText(kind, block, { module, weight, key: keyOf(kind, block), measured: drawn.measured });
  };
  const facts = [say("heatLayer"), say("heatRank"), say("heatBlocks")];
  return gridOf({ caption: name || say("heatOutside"), facts, count, rows, tell }, drawn.line);
}

/**
 * @param {HTMLElement} cell
 * @param {Shade} shade
 */
function paint(cell, { share, sign }) {
  shaded(cell, share).textContent = sign;
}

/**
 * @param {string} state of a cell, in words
 * @param {string} key
 * @param {import("./measure.mjs").Measured} measured
 * @returns {string} with its share of the energy
 */
function withEnergy(state, key, measured) {
  const energy = measured.layers.get(key)?.energy_a;
  if (typeof energy !== "number") return say("heatCellNoEnergy", { state });
  return measured.norm_a ? say("heatCellEnergy", { state, energy: tellShare(energy, measured.norm_a) }) : state;
}

/**
 * @param {string} name of the blocks
 * @param {number} block
 * @param {Kind} kind
 */
function layerAt(name, block, kind) {
  return `${name}.${block}.${kind.name}`;
}

/**
 * The number of a layer weight in place of the mark.
 *
 * @param {HTMLTableCellElement} cell
 * @param {number | undefined} weight
 */
function weigh(cell, weight) {
  if (weight === undefined) return;
  cell.textContent = String(Number(weight.toFixed(2))).replace("0.", ".");
  cell.ariaLabel = say("heatWeighted", { state: cell.ariaLabel ?? "", weight });
  cell.classList.toggle("locksmith-off", weight === 0);
}

/**
 * @param {Kind} kind
 * @param {number} block
 * @param {{module: string, weight: number | undefined, key: string, measured?: import("./measure.mjs").Measured}} told
 */
function cellText(kind, block, { module, weight, key, measured }) {
  const mark = kind.trained[block];
  const state = say({ 1: "heatPart", 2: "heatTrained" }[mark] ?? "heatUntrained");
  const rank = mark === "0" ? "" : ranksAt(kind, block).join(", ");
  let text = say(rank ? "heatCellRank" : "heatCell", { module, state, rank });
  if (measured && mark !== "0") text = withEnergy(text, key, measured);
  return weight === undefined ? text : say("heatWeighted", { state: text, weight });
}

/**
 * Which blocks a string of marks stands for: "all", "0-5, 8", "none".
 *
 * @param {string} marks
 */
function blocksOf(marks) {
  if (!/[^0]/.test(marks)) return say("heatNone");
  if (!marks.includes("0")) return say(marks.includes("1") ? "heatPart" : "heatAll");
  return [...marks.matchAll(/[^0]+/g)]
    .map(({ 0: { length }, index }) => (length === 1 ? `${index}` : `${index}-${index + length - 1}`))
    .join(", ");
}
