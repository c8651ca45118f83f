/** Other packs' nodes that make lists of LoRAs for a loader. */

import { Left } from "./loaders.mjs";
import { alikeRowsOfGallery, count, MULTIPLES, named, rowsOfManager } from "./many.mjs";

/** @typedef {import("./loaders.mjs").Values} Values */

/** One LoRA with one strength, in front of the list it takes. */
const AUTO_TRIGGER = {
  widgets: ["lora_name", "lora_weight"],
  rows: (/** @type {Values} */ { lora_name: name, lora_weight: strength }) => [{ on: true, name, strength }],
  takes: "lora_stack",
  takesAfter: true,
  makes: true,
};

/** @type {Record<string, import("./many.mjs").Multiple>} Loaders of many LoRAs, and what makes lists for them. */
export const LISTS = {
  ...MULTIPLES,
  "Lora Stacker (LoraManager)": { rows: rowsOfManager, takes: "lora_stack", makes: true },
  "Lora Stack Combiner (LoraManager)": { rows: () => [], takes: "lora_stack", takesAll: true, makes: true },
  LocalLoraGalleryStacker: { rows: alikeRowsOfGallery, makes: true },
  LoraLoaderStackedVanilla: AUTO_TRIGGER,
  LoraLoaderStackedAdvanced: AUTO_TRIGGER,
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
  "easy loraStack": {
    widgets: ["toggle", "mode", "num_loras", ...named(10, fieldsOfLora)],
    rows: (values) => rowsOfMode(values, values.toggle === true),
    takes: "optional_lora_stack",
    makes: true,
  },
  "ttN pipeLoraStack": {
    widgets: ["toggle", "mode", "num_loras", ...named(20, fieldsOfLora)],
    rows: (values) => rowsOfMode(values, ![false, null, "False"].includes(values.toggle)),
    makes: true,
  },
  "easy loraSwitcher": {
    widgets: ["toggle", "select", "num_loras", "lora_strength", ...named(50, (i) => [`lora_${i}_name`])],
    rows: rowsOfSwitcher,
    takes: "optional_lora_stack",
    makes: true,
  },
  "CR Random LoRA Stack": { rows: rowsByChance, makes: true },
  "CR Random Weight LoRA": { rows: rowsByChance, makes: true },
  "Lora Randomizer (LoraManager)": { rows: rowsByChance, makes: true },
};

/** @param {number} i */
function fieldsOfLora(i) {
  return ["name", "strength", "model_strength", "clip_strength"].map((field) => `lora_${i}_${field}`);
}

/**
 * Rows with one strength for each or with two, as the mode says.
 *
 * @param {Values} values
 * @param {boolean} on
 */
function rowsOfMode({ mode, num_loras, ...values }, on) {
  return count(num_loras, (i) => {
    const [name, strength, ofModel, strength_clip] = fieldsOfLora(i).map((field) => values[field]);
    return mode === "simple" ? { on, name, strength } : { on, name, strength: ofModel, strength_clip };
  });
}

/**
 * All that can be chosen, with the chosen one switched on. Without a name for it the node drops the list it takes too.
 *
 * @param {Values} values
 */
function rowsOfSwitcher({ toggle, select, num_loras, lora_strength: strength, ...names }) {
  const isOn = toggle === true;
  if (isOn && [undefined, null, "", "None"].includes(names[`lora_${select}_name`])) throw new Left("swapNoName");
  const most = Math.max(Number(select) || 0, Number(num_loras) || 0);
  return count(most, (i) => ({ on: isOn && i === select, name: names[`lora_${i}_name`], strength }));
}

/**
 * What is drawn anew in each run is no list of rows.
 *
 * @returns {any[]}
 */
function rowsByChance() {
  throw new Left("swapChance");
}
