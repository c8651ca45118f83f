/** The LoRA loaders and hooks of the host and of other packs, and where their saved nodes keep what they load. */

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
const LTX2_LAYERS = ["video", "video_to_audio", "audio", "audio_to_video", "other"];

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
  LTX2LoraLoaderAdvanced: {
    widgets: [...MODEL_ONLY, ...LTX2_LAYERS],
    isPlain: (values) => LTX2_LAYERS.every((layers) => values[layers] === 1),
  },
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

/** @type {Record<string, Multiple>} Those that make lists are in makers.mjs. */
export const MULTIPLES = {
  ...Object.fromEntries(Object.keys(GROUPED).map((type) => [type, { rows: rowsOfHost }])),
  "Power Lora Loader (rgthree)": { rows: rowsOfPowerLoader },
  "Lora Loader Stack (rgthree)": {
    widgets: named(4, (i) => [`lora_0${i}`, `strength_0${i}`]),
    rows: (values) => count(4, (i) => ({ on: true, name: values[`lora_0${i}`], strength: values[`strength_0${i}`] })),
  },
  "Lora Loader (LoraManager)": { rows: rowsOfManager, takes: "lora_stack", words: 2 },
  "CR Apply LoRA Stack": { rows: () => [], takes: "lora_stack" },
  "easy loraStackApply": { rows: () => [], takes: "lora_stack", clip: "optional_clip" },
};

/**
 * @param {{type?: string, properties?: any}} node
 * @param {Direction} direction
 */
export function canReplace({ type = "", properties }, direction) {
  if (direction === TO_STOCK) return type === LOADER || type === HOOK || (type === STACK && properties?.[FROM] in GROUPED);
  return type in SINGLES || type in MULTIPLES;
}

/**
 * Whether a node makes a hook, ours or another's.
 *
 * @param {string} type of a node
 */
export function makesHook(type) {
  return type === HOOK || Boolean(SINGLES[type]?.isHook);
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
export function rowsOfManager(_values, node) {
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
