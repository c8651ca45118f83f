/** Loaders of many LoRAs, and where their saved nodes keep them. */

import { GROUPED, rowsOfGroup } from "./grouped.mjs";
import { Left } from "./loaders.mjs";

/** @typedef {import("./loaders.mjs").Values} Values */

/**
 * A loader of many LoRAs, or a maker of a list of them for one (`makes`): its rows; the input at which it takes such a list, or the
 * beginning of all of them (`takesAll`), and whether that list comes after its own rows; what it calls our input clip; the slot of its
 * output of trigger words; whether it loads onto Nunchaku's models too, which ours does not.
 *
 * @typedef {{rows: (values: Values, node: any) => any[], widgets?: string[], takes?: string, takesAll?: boolean,
 *            takesAfter?: boolean, makes?: boolean, clip?: string, words?: number, isForNunchaku?: boolean}} Multiple
 */

/** @type {Record<string, Multiple>} Those whose types loaders.mjs lists; what makes lists for them is in makers.mjs. */
export const MULTIPLES = {
  ...Object.fromEntries(Object.keys(GROUPED).map((type) => [type, { rows: rowsOfHost }])),
  "Power Lora Loader (rgthree)": { rows: rowsOfPowerLoader },
  "Lora Loader Stack (rgthree)": {
    widgets: named(4, (i) => [`lora_0${i}`, `strength_0${i}`]),
    rows: (values) => count(4, (i) => ({ on: true, name: values[`lora_0${i}`], strength: values[`strength_0${i}`] })),
  },
  "Lora Loader (LoraManager)": { rows: rowsOfManager, takes: "lora_stack", words: 2, isForNunchaku: true },
  "Create Hook LoRA (LoraManager)": { rows: rowsOfManager },
  "CR Apply LoRA Stack": { rows: () => [], takes: "lora_stack" },
  "easy loraStackApply": { rows: () => [], takes: "lora_stack", clip: "optional_clip" },
  LocalLoraGallery: { rows: rowsOfGallery, isForNunchaku: true },
  LocalLoraGalleryModelOnly: { rows: alikeRowsOfGallery, isForNunchaku: true },
  LocalLoraGalleryStackApply: { rows: () => [], takes: "lora_stack", isForNunchaku: true },
};

/**
 * @param {Values} _values
 * @param {any} node
 */
function rowsOfHost(_values, node) {
  const rows = rowsOfGroup(node);
  if (!rows) throw new Left("swapUnreadable");
  return rows;
}

/**
 * @param {Values} _values
 * @param {any} node
 */
function rowsOfPowerLoader(_values, node) {
  const isTwofold = node.properties?.["Show Strengths"] === "Separate Model & Clip";
  const rows = listOf(node.widgets_values).filter((value) => value?.lora !== undefined);
  return rows.map(({ on, lora, strength, strengthTwo }) => {
    return { on: on === true, name: lora, strength, ...(isTwofold ? { strength_clip: strengthTwo ?? 1 } : {}) };
  });
}

/**
 * @param {Values} _values
 * @param {any} node
 */
export function rowsOfManager(_values, node) {
  const lists = listOf(node.widgets_values).map((value) => value?.__value__ ?? value);
  const rows = lists.find((value) => Array.isArray(value));
  if (!rows) throw new Left("swapUnreadable");
  return rows.map((/** @type {any} */ { name, strength, clipStrength, active }) => {
    return { on: active === true, name, strength: Number(strength), strength_clip: Number(clipStrength ?? strength) };
  });
}

/**
 * @param {Values} _values
 * @param {any} node
 */
function rowsOfGallery(_values, node) {
  return galleryOf(node).map(({ on = true, lora, strength = 1, strength_clip = strength }) => {
    return { on: Boolean(on), name: lora, strength, strength_clip };
  });
}

/**
 * Those of a gallery that has one strength for each.
 *
 * @param {Values} _values
 * @param {any} node
 */
export function alikeRowsOfGallery(_values, node) {
  return galleryOf(node).map(({ on = true, lora, strength = 1 }) => ({ on: Boolean(on), name: lora, strength }));
}

/**
 * What is chosen in a gallery, which keeps it as JSON, in a property and in a widget; the widget's counts when it is opened.
 *
 * @param {any} node
 * @returns {any[]}
 * @throws {Left}
 */
function galleryOf({ properties, widgets_values: values }) {
  try {
    const rows = JSON.parse(values?.[1] ?? properties?.selection_data);
    if (Array.isArray(rows)) return rows;
  } catch {
    // told below
  }
  throw new Left("swapUnreadable");
}

/** @param {any} values */
function listOf(values) {
  return /** @type {any[]} */ (Array.isArray(values) ? values : Object.values(values ?? {}));
}

/**
 * @template Item
 * @param {number} most
 * @param {(i: number) => Item} make of 1, 2 ...
 * @returns {Item[]}
 */
export function count(most, make) {
  return Array.from({ length: Number(most) || 0 }, (_, i) => make(i + 1));
}

/**
 * @param {number} most
 * @param {(i: number) => string[]} names
 */
export function named(most, names) {
  return count(most, names).flat();
}
