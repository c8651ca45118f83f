/** The LoRA loaders and hooks of the host and of other packs, and how their saved nodes are read. */

import { GROUPED, rowsOfGroup } from "./grouped.mjs";

export const LOADER = "LocksmithLoadAndFixLoRA";
export const STACK = "LocksmithLoRAStack";
export const HOOK = "LocksmithCreateHookLoRA";
export const TO_STOCK = "stock";
/** The property in which ours keeps the type of the host's loader it was. */
export const FROM = "locksmith_from";

/** @typedef {"ours" | "stock"} Direction what nodes become */

/** @typedef {Record<string, any>} Values of a node's widgets by their names */
/** @typedef {{on: boolean, name: string, strength: number, strength_clip?: number}} Row one LoRA of a loader */

/** Why a node is left as it is: a key of the words, and what fills them. */
export class Left extends Error {
  /**
   * @param {string} key
   * @param {Record<string, string | number>} [fill]
   */
  constructor(key, fill = {}) {
    super(key);
    this.key = key;
    this.fill = fill;
  }
}

const MODEL_ONLY = ["lora_name", "strength_model"];
const PLAIN = [...MODEL_ONLY, "strength_clip"];
const BLOCKS = ["inverse", "seed", "control_after_generate", "A", "B", "preset", "block_vector", "bypass"];

/**
 * A loader of one LoRA, whose widgets are named as the stock loader's: its widgets in the order their values are saved; whether it is
 * switched off; whether its other widgets change nothing; our `mode` that does the same; whether it makes a hook; the strength for
 * the text encoder where it has no widget for it.
 *
 * @typedef {{widgets: string[], isOff?: (values: Values) => boolean, isPlain?: (values: Values) => boolean, mode?: string,
 *            isHook?: boolean, clip?: number}} Single
 */

/** @type {Record<string, Single>} */
export const SINGLES = {
  LoraLoader: { widgets: PLAIN },
  LoraLoaderModelOnly: { widgets: MODEL_ONLY },
  LoraLoaderBypass: { widgets: PLAIN, mode: "bypass" },
  LoraLoaderBypassModelOnly: { widgets: MODEL_ONLY, mode: "bypass" },
  CreateHookLora: { widgets: PLAIN, isHook: true },
  CreateHookLoraModelOnly: { widgets: MODEL_ONLY, isHook: true, clip: 0 },
  "LoraLoader|pysssss": { widgets: PLAIN },
  "Lora Loader": { widgets: PLAIN },
  "CR Load LoRA": { widgets: ["switch", ...PLAIN], isOff: (values) => values.switch === "Off" },
  "LoraLoaderBlockWeight //Inspire": { widgets: ["category_filter", ...PLAIN, ...BLOCKS], isPlain: weighsAllBlocksAlike },
  DiTBlockLoraLoader: { widgets: ["strength_model", "lora_name"] },
  MusubiTunerLoRALoaderModelOnly: { widgets: MODEL_ONLY },
  ZImageTurboLoraLoader: {
    widgets: [...MODEL_ONLY, "auto_convert_qkv", "layer_strengths"],
    isPlain: ({ layer_strengths }) => [undefined, null, "", "{}"].includes(layer_strengths),
  },
};

/**
 * A loader of many LoRAs, or a maker of a list of them for one (`makes`): its rows; the input at which it takes such a list, and
 * whether that list comes after its own rows; what it calls our input clip; the slot of its output of trigger words.
 *
 * @typedef {{rows: (values: Values, node: any) => any[], widgets?: string[], takes?: string, takesAfter?: boolean, makes?: boolean,
 *            clip?: string, words?: number}} Multiple
 */

/** @type {Record<string, Multiple>} */
export const MULTIPLES = {
  ...Object.fromEntries(Object.keys(GROUPED).map((type) => [type, { rows: rowsOfHost }])),
  "Power Lora Loader (rgthree)": { rows: rowsOfPowerLoader },
  "Lora Loader Stack (rgthree)": {
    widgets: named(4, (i) => [`lora_0${i}`, `strength_0${i}`]),
    rows: (values) => count(4, (i) => ({ on: true, name: values[`lora_0${i}`], strength: values[`strength_0${i}`] })),
  },
  "Lora Loader (LoraManager)": { rows: rowsOfManager, takes: "lora_stack", words: 2 },
  "Lora Stacker (LoraManager)": { rows: rowsOfManager, takes: "lora_stack", makes: true },
  "CR Apply LoRA Stack": { rows: () => [], takes: "lora_stack" },
  "CR LoRA Stack": {
    widgets: named(3, (i) => [`switch_${i}`, `lora_name_${i}`, `model_weight_${i}`, `clip_weight_${i}`]),
    rows: (values) =>
      count(3, (i) => ({
        on: values[`switch_${i}`] === "On",
        name: values[`lora_name_${i}`],
        strength: values[`model_weight_${i}`],
        strength_clip: values[`clip_weight_${i}`],
      })),
    takes: "lora_stack",
    makes: true,
  },
  "LoRA Stacker": {
    widgets: ["input_mode", "lora_count", ...named(50, (i) => [`lora_name_${i}`, `lora_wt_${i}`, `model_str_${i}`, `clip_str_${i}`])],
    rows: (values) =>
      count(values.lora_count, (i) => ({
        on: true,
        name: values[`lora_name_${i}`],
        ...(values.input_mode === "simple"
          ? { strength: values[`lora_wt_${i}`] }
          : { strength: values[`model_str_${i}`], strength_clip: values[`clip_str_${i}`] }),
      })),
    takes: "lora_stack",
    takesAfter: true,
    makes: true,
  },
  "easy loraStackApply": { rows: () => [], takes: "lora_stack", clip: "optional_clip" },
  "easy loraStack": {
    widgets: [
      ...["toggle", "mode", "num_loras"],
      ...named(10, (i) => [`lora_${i}_name`, `lora_${i}_strength`, `lora_${i}_model_strength`, `lora_${i}_clip_strength`]),
    ],
    rows: (values) =>
      count(values.num_loras, (i) => ({
        on: values.toggle === true,
        name: values[`lora_${i}_name`],
        ...(values.mode === "simple"
          ? { strength: values[`lora_${i}_strength`] }
          : { strength: values[`lora_${i}_model_strength`], strength_clip: values[`lora_${i}_clip_strength`] }),
      })),
    takes: "optional_lora_stack",
    makes: true,
  },
};

/**
 * @param {{type?: string, properties?: any}} node
 * @param {Direction} direction
 */
export function canReplace({ type = "", properties }, direction) {
  if (direction === TO_STOCK) return type === LOADER || type === HOOK || (type === STACK && properties?.[FROM] in GROUPED);
  return type in SINGLES || (type in MULTIPLES && !MULTIPLES[type].makes);
}

/**
 * Whether a node makes a hook, ours or another's.
 *
 * @param {string} type of a node
 */
export function makesHook(type) {
  return type === HOOK || Boolean(SINGLES[type]?.isHook);
}

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
  const { widgets = [], rows } = MULTIPLES[node.type];
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

/** @param {Values} values */
function weighsAllBlocksAlike({ inverse, bypass, block_vector }) {
  if (inverse !== false || bypass !== false || typeof block_vector !== "string") return false;
  return block_vector.trim().split(/[\s,]+/).every((weight) => Number(weight) === 1);
}

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
function rowsOfManager(_values, node) {
  const lists = listOf(node.widgets_values).map((value) => value?.__value__ ?? value);
  const rows = lists.find((value) => Array.isArray(value));
  if (!rows) throw new Left("swapUnreadable");
  return rows.map((/** @type {any} */ { name, strength, clipStrength, active }) => {
    return { on: active === true, name, strength: Number(strength), strength_clip: Number(clipStrength ?? strength) };
  });
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
function count(most, make) {
  return Array.from({ length: Number(most) || 0 }, (_, i) => make(i + 1));
}

/**
 * @param {number} most
 * @param {(i: number) => string[]} names
 */
function named(most, names) {
  return count(most, names).flat();
}
