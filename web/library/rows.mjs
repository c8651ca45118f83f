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
 *   cautions: string[], contradiction: string, trainer_guessed: boolean, state: State, pickled: boolean, problem: boolean, error: string,
 *   has_picture?: boolean, trigger_words?: string[]}} Told
 */

/**
 * A row: what is told of a file, and what is worked out once for all searching and sorting. `values`: what each filter finds it by.
 *
 * @typedef {Told & {text: string, name: string, folder: string, model: string, kindNames: string[], words: string[], order: string,
 *   values: Record<Filter, string[]>}} Row
 */

/**
 * What stands above the rows of one folder; `problems`: how many of its `count` files have one.
 *
 * @typedef {{isFolder: true, file: string, folder: string, count: number, problems: number, isClosed: boolean}} Folder
 */

/**
 * What the reader wants to see: words, a value for each filter ("" for all), and the order.
 *
 * @typedef {{query: string, model: string, trainer: string, kind: string, state: string, sort: string, descending: boolean,
 *   grouped: boolean}} Choice
 */

/** @type {Readonly<Choice>} */
export const EVERYTHING = Object.freeze({
  query: "", model: "", trainer: "", kind: "", state: "", sort: "loads", descending: false, grouped: true,
}); // prettier-ignore

const COLLATOR = new Intl.Collator(undefined, { numeric: true });
/** @typedef {"model" | "trainer" | "kind" | "state"} Filter */
/** From the worst to the best. @type {State[]} */
const SEVERITY = ["unreadable", "bad", "partly", "doubtful", "untold", "pickled", "mended", "good"];
/** What a row can be picked for: that it has a problem, and each state. */
export const STATES = ["problem", ...[...SEVERITY].reverse()];
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
  loads: severityOf,
  changed: (row) => row.changed,
};
export const SORT_NAMES = Object.keys(SORTS);

/**
 * @param {Told} told
 * @returns {Row}
 */
export function prepare(told) {
  const cut = Math.max(told.file.lastIndexOf("/"), told.file.lastIndexOf("\\")) + 1;
  const named = (Array.isArray(told.kinds) ? told.kinds : told.kinds.split(", ")).filter(Boolean);
  const kindNames = named.length ? named : [UNTOLD];
  const trainer = trainerOf(told) || UNTOLD;
  const model = told.made_for || told.family || UNTOLD;
  const words = told.trigger_words ?? [];
  const searched = [told.file, told.made_for, told.family, told.trainer, ...named, ...words];
  const state = told.problem ? ["problem", told.state] : [told.state];
  return {
    ...told, kindNames, trainer, model, words,
    values: { model: [model], trainer: [trainer], kind: kindNames, state },
    text: searched.join("\n").toLowerCase(),
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
    const failed = FILTERS.filter((filter) => choice[filter] && !row.values[filter].includes(choice[filter]));
    if (!failed.length) picked.push(row);
    if (failed.length < 2) for (const filter of failed.length ? failed : FILTERS) count(counts[filter], row.values[filter]);
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

/** @param {Row} row */
function severityOf(row) {
  return SEVERITY.indexOf(row.state);
}

/**
 * Rows under their folders. The folders stand by name; where the worst rows stand first, so do the folders they are in.
 *
 * @param {Row[]} rows in their order
 * @param {Choice} choice
 * @param {Set<string>} closed folders whose rows are not shown
 * @returns {(Row | Folder)[]}
 */
export function inFolders(rows, choice, closed) {
  /** @type {Map<string, Row[]>} */
  const folders = new Map();
  for (const row of rows) {
    const those = folders.get(row.folder);
    if (those) those.push(row);
    else folders.set(row.folder, [row]);
  }
  if (folders.size < 2) return rows;
  const names = [...folders.keys()];
  if (choice.sort !== "loads") names.sort(COLLATOR.compare);
  return names.flatMap((folder) => {
    const those = folders.get(folder) ?? [];
    const problems = those.filter(({ problem }) => problem).length;
    const isClosed = closed.has(folder);
    /** @type {Folder} */
    const head = { isFolder: true, file: `${folder}/`, folder, count: those.length, problems, isClosed };
    return isClosed ? [head] : [head, ...those];
  });
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
