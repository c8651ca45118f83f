/** The rows of the library: what is searched in them, how they are filtered, counted and sorted. No document here. */

import { trainerOf } from "../shared/names.mjs";

/**
 * What becomes of a file: "good", "mended" (the stock loader would fall short), "partly", "doubtful" (it loads, but may not
 * come out as trained), "bad" (nothing loads), "untold" (whether it loads depends on the model, which is not known), "pickled" (only a
 * node reads it) or "unreadable".
 *
 * @typedef {"good" | "mended" | "partly" | "doubtful" | "bad" | "untold" | "pickled" | "unreadable"} State
 */

/**
 * A file as the server tells it.
 *
 * @typedef {{file: string, bytes: number, changed: number, verdict: string, family: string, made_for: string, trainer: string,
 *   kinds: string | string[], rank: string | number, placed: number, total: number, stock: number, gains: string[], losses: string[],
 *   cautions: string[], contradiction: string, trainer_guessed: boolean, state: State, pickled: boolean, problem: boolean, error: string, trigger_words?: string[]}} Told
 */

/**
 * A row: what is told of a file, and what is worked out once for all searching and sorting.
 *
 * @typedef {Told & {text: string, name: string, folder: string, model: string, kindNames: string[], order: string}} Row
 */

/**
 * What the reader wants to see: words, a value for each filter ("" for all), and the order.
 *
 * @typedef {{query: string, model: string, trainer: string, kind: string, state: string, sort: string, descending: boolean}} Choice
 */

/** @type {Readonly<Choice>} */
export const EVERYTHING = Object.freeze({
  query: "", model: "", trainer: "", kind: "", state: "", sort: "name", descending: false,
}); // prettier-ignore

/** What a row can be picked for, by its state. */
export const STATES = ["stock", "problem", "unreadable"];
/** What stands for a model, trainer or kind that cannot be told. */
export const UNTOLD = "?";
const FILTERS = /** @type {const} */ (["model", "trainer", "kind", "state"]);

/** @type {Record<string, (row: Row) => string | number>} */
const SORTS = {
  name: (row) => row.order,
  model: (row) => sortable(row.model),
  trainer: (row) => sortable(row.trainer),
  kind: (row) => row.kindNames.join(", ").toLowerCase(),
  rank: (row) => Number.parseFloat(String(row.rank)) || 0,
  size: (row) => row.bytes,
  loads: (row) => (row.error ? -1 : row.total ? row.placed / row.total : 0) + (row.gains.length ? 0 : 1),
  changed: (row) => row.changed,
};
export const SORT_NAMES = Object.keys(SORTS);

/**
 * @param {Told} told
 * @returns {Row}
 */
export function prepare(told) {
  const cut = Math.max(told.file.lastIndexOf("/"), told.file.lastIndexOf("\\")) + 1;
  const kindNames = (Array.isArray(told.kinds) ? told.kinds : told.kinds.split(", ")).filter(Boolean);
  const trainer = trainerOf(told) || UNTOLD;
  const model = told.made_for || told.family || UNTOLD;
  const words = [told.file, told.made_for, told.family, told.trainer, ...kindNames, ...(told.trigger_words ?? [])];
  return {
    ...told, kindNames: kindNames.length ? kindNames : [UNTOLD], trainer, model,
    text: words.join("\n").toLowerCase(),
    name: told.file.slice(cut).replace(/\.safetensors$/i, ""),
    folder: told.file.slice(0, Math.max(cut - 1, 0)),
    order: told.file.slice(cut).toLowerCase().replace(/\d+/g, (digits) => digits.padStart(8, "0")), // v2 before v10
  }; // prettier-ignore
}

/**
 * The rows that are wanted, in the order they came in, and how many there would be for each value of each filter.
 *
 * @param {Row[]} rows
 * @param {Choice} choice
 */
export function pick(rows, choice) {
  const words = choice.query.toLowerCase().split(/\s+/).filter(Boolean);
  const counts = Object.fromEntries(FILTERS.map((filter) => [filter, /** @type {Map<string, number>} */ (new Map())]));
  const picked = [];
  for (const row of rows) {
    if (!words.every((word) => row.text.includes(word))) continue;
    const failed = FILTERS.filter((filter) => choice[filter] && !valuesOf(row, filter).includes(choice[filter]));
    if (!failed.length) picked.push(row);
    for (const filter of failed.length ? failed : FILTERS) if (failed.length < 2) count(counts[filter], valuesOf(row, filter));
  }
  return { picked, counts };
}

/**
 * @param {Row[]} rows
 * @param {Choice} choice
 * @returns {Row[]} a sorted copy; equal rows stand by name
 */
export function sorted(rows, choice) {
  const key = SORTS[choice.sort] ?? SORTS.name;
  const direction = choice.descending ? -1 : 1;
  const keyed = rows.map((row) => ({ row, key: key(row) }));
  keyed.sort((a, b) => direction * compare(a.key, b.key) || compare(a.row.order, b.row.order));
  return keyed.map(({ row }) => row);
}

/**
 * @param {Row} row
 * @param {typeof FILTERS[number]} filter
 * @returns {string[]}
 */
function valuesOf(row, filter) {
  if (filter === "kind") return row.kindNames;
  if (filter !== "state") return [row[filter]];
  if (row.state === "unreadable") return ["problem", "unreadable"];
  return [...(row.gains.length ? ["stock"] : []), ...(row.problem ? ["problem"] : [])];
}

/**
 * @param {Map<string, number>} counts
 * @param {string[]} values
 */
function count(counts, values) {
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
}

/** @param {string} text */
function sortable(text) {
  return text === UNTOLD ? "\uffff" : text.toLowerCase(); // what cannot be told stands last
}

/**
 * @param {string | number} a
 * @param {string | number} b
 */
function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
