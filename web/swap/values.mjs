/** Reads the LoRAs of a saved loader into rows in our form. */

import { Left, SINGLES } from "./loaders.mjs";
import { LISTS } from "./makers.mjs";

/** @typedef {import("./loaders.mjs").Row} Row */
/** @typedef {import("./loaders.mjs").Values} Values */

/**
 * The values of a saved node's widgets by their names; some packs save them so.
 *
 * @param {any} node as saved
 * @param {string[]} names in the order of the node's widgets
 * @returns {Values}
 */
export function valuesOf(node, names) {
  const values = node.widgets_values ?? [];
  return Array.isArray(values) ? Object.fromEntries(names.map((name, i) => [name, values[i]])) : values;
}

/**
 * The one LoRA of a loader of one.
 *
 * @param {any} node as saved
 * @returns {Row}
 * @throws {Left}
 */
export function rowOfSingle(node) {
  const { widgets, isOff, isPlain, clip = 1 } = SINGLES[node.type];
  const values = valuesOf(node, widgets);
  if (isPlain && !isPlain(values)) throw new Left("swapBlocks");
  const { lora_name: name, strength_model: strength, strength_clip = clip } = values;
  const [row] = checked([{ on: !isOff?.(values), name, strength, strength_clip }]);
  if (!row) throw new Left("swapNoName");
  return row;
}

/**
 * The LoRAs of a loader of many, or of a maker of lists.
 *
 * @param {any} node as saved
 * @returns {Row[]}
 * @throws {Left}
 */
export function rowsOfMultiple(node) {
  const { widgets = [], rows } = LISTS[node.type];
  return checked(rows(valuesOf(node, widgets), node));
}

/**
 * The file of a list that a name means; other packs leave out its ending or folder, or write the folder as another system does.
 *
 * @param {string} name
 * @param {string[]} listed
 * @returns {string} the name itself, where no file or more than one is like it
 */
export function listedName(name, listed) {
  if (listed.includes(name)) return name;
  const wanted = name.replaceAll("\\", "/");
  const spellings = [
    (/** @type {string} */ file) => file,
    (/** @type {string} */ file) => file.replace(/\.\w+$/, ""),
    (/** @type {string} */ file) => file.replace(/^.*\//, ""),
    (/** @type {string} */ file) => file.replace(/^.*\//, "").replace(/\.\w+$/, ""),
  ];
  for (const spell of spellings) {
    const found = listed.filter((file) => spell(file.replaceAll("\\", "/")) === wanted);
    if (found.length) return found.length === 1 ? found[0] : name;
  }
  return name;
}

/**
 * Rows that name a file, in our form.
 *
 * @param {any[]} rows
 * @returns {Row[]}
 * @throws {Left}
 */
function checked(rows) {
  return rows
    .map((row) => ({ ...row, name: row.name?.content ?? row.name }))
    .filter(({ name }) => name !== null && name !== "" && name !== "None")
    .map(({ on, name, strength, strength_clip }) => {
      if (typeof name !== "string" || !isStrength(strength)) throw new Left("swapUnreadable");
      if (strength_clip === undefined || strength_clip === strength) return { on, name, strength };
      if (!isStrength(strength_clip)) throw new Left("swapUnreadable");
      return { on, name, strength, strength_clip };
    });
}

/** @param {any} value */
function isStrength(value) {
  return typeof value === "number" && Number.isFinite(value);
}
