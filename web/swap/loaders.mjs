/** The LoRA loaders and hooks of the host and of other packs, and where those of one LoRA keep what they load. */

export const LOADER = "LocksmithLoadAndFixLoRA";
export const STACK = "LocksmithLoRAStack";
export const HOOK = "LocksmithCreateHookLoRA";
export const HOOK_STACK = "LocksmithCreateHookLoRAStack";
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
const SWITCHED = { widgets: ["switch", ...PLAIN], isOff: (/** @type {Values} */ values) => values.switch === "Off" };
const BLOCKS = ["inverse", "seed", "control_after_generate", "A", "B", "preset", "block_vector", "bypass"];
const LTX2_LAYERS = ["video", "video_to_audio", "audio", "audio_to_video", "other"];

/**
 * A loader of one LoRA: its widgets in the order their values are saved, named as the stock loader's; what it calls those that it
 * names otherwise; whether it is switched off; whether its other widgets change nothing; our `mode` that does the same; whether it
 * makes a hook; the strength for the text encoder where it has no widget for it.
 *
 * @typedef {{widgets: string[], calls?: Record<string, string>, isOff?: (values: Values) => boolean,
 *            isPlain?: (values: Values) => boolean, mode?: string, isHook?: boolean, clip?: number}} Single
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
  "Load Lora": { widgets: PLAIN },
  LoraLoaderVanilla: { widgets: PLAIN },
  LoraLoaderAdvanced: { widgets: PLAIN },
  SDLoraLoader: { widgets: PLAIN },
  LoraLoaderTagsQuery: {
    widgets: [...PLAIN, "query_tags", "tags_out", "print_tags", "bypass"],
    isOff: ({ bypass }) => bypass === true,
  },
  "CR Load LoRA": SWITCHED,
  "Lora Loader (JPS)": SWITCHED,
  "LoraLoaderBlockWeight //Inspire": { widgets: ["category_filter", ...PLAIN, ...BLOCKS], isPlain: weighsAllBlocksAlike },
  DiTBlockLoraLoader: { widgets: ["strength_model", "lora_name"] },
  LTX2LoraLoaderAdvanced: {
    widgets: [...MODEL_ONLY, ...LTX2_LAYERS],
    isPlain: (values) => LTX2_LAYERS.every((layers) => values[layers] === 1),
  },
  MusubiTunerLoRALoaderModelOnly: { widgets: MODEL_ONLY },
  HunyuanVideoLoraLoader: {
    widgets: [...MODEL_ONLY, "blocks_type"],
    calls: { strength: "strength_model" },
    isPlain: ({ blocks_type }) => blocks_type === "all",
  },
  ZImageTurboLoraLoader: {
    widgets: [...MODEL_ONLY, "auto_convert_qkv", "layer_strengths"],
    isPlain: ({ layer_strengths }) => [undefined, null, "", "{}"].includes(layer_strengths),
  },
};

/** The host's loaders whose rows are widgets; grouped.mjs has more of them. */
const GROUPED = ["LoadLoraModel", "LoadLoraTextEncoder"];
/** What makes hooks of many LoRAs. */
const HOOKS = ["Create Hook LoRA (LoraManager)"];
/** All loaders and hooks of many LoRAs; what they hold is in many.mjs. */
const MANY = [
  ...GROUPED,
  ...HOOKS,
  "Power Lora Loader (rgthree)",
  "Lora Loader Stack (rgthree)",
  "Lora Loader (LoraManager)",
  "CR Apply LoRA Stack",
  "easy loraStackApply",
  "LocalLoraGallery",
  "LocalLoraGalleryModelOnly",
  "LocalLoraGalleryStackApply",
];

/**
 * @param {{type?: string, properties?: any}} node
 * @param {Direction} direction
 */
export function canReplace({ type = "", properties }, direction) {
  if (direction === TO_STOCK) return type === LOADER || type === HOOK || (type === STACK && GROUPED.includes(properties?.[FROM]));
  return type in SINGLES || MANY.includes(type);
}

/**
 * Whether a node makes a hook, ours or another's.
 *
 * @param {string} type of a node
 */
export function makesHook(type) {
  return type === HOOK || HOOKS.includes(type) || Boolean(SINGLES[type]?.isHook);
}

/** @param {Values} values */
function weighsAllBlocksAlike({ inverse, bypass, block_vector }) {
  if (inverse !== false || bypass !== false || typeof block_vector !== "string") return false;
  return block_vector.trim().split(/[\s,]+/).every((weight) => Number(weight) === 1);
}
