/**
 * The host's loaders of many LoRAs, whose rows are widgets each: "loras" is how many there are, "loras.0.lora_name" is what the first
 * one loads. They load onto a model or onto a text encoder alone.
 *
 * https://github.com/Comfy-Org/ComfyUI/blob/master/comfy_extras/nodes_lora_stack.py
 */

const ROWS = "loras";
/** The widgets of a row in the order their values are saved; the first versions of these nodes had no switch. */
const FIELDS = ["lora_name", "strength", "enabled"];
const WIDTHS = [FIELDS.length, FIELDS.length - 1];
const SIZE = [270, 102];

/** @typedef {import("./loaders.mjs").Row} Row */
/** @typedef {import("./graph.mjs").Blank} Blank */

/**
 * What they load onto: the input of that name, its type, and the slot of the output in which ours gives it.
 *
 * @type {Record<string, {socket: string, type: string, slot: number}>}
 */
export const GROUPED = {
  LoadLoraModel: { socket: "model", type: "MODEL", slot: 0 },
  LoadLoraTextEncoder: { socket: "clip", type: "CLIP", slot: 1 },
};

/**
 * The rows of a saved node in their order, each with its number, which may leave some out; undefined where the values are not as
 * expected.
 *
 * @param {any} node
 * @returns {(Row & {number: number})[] | undefined}
 */
export function rowsOfGroup(node) {
  const named = valuesOf(node);
  if (!named) return undefined;
  /** @type {Map<number, Record<string, any>>} */
  const rows = new Map();
  for (const [name, value] of Object.entries(named)) {
    const [group, number, field] = name.split(".");
    if (group === ROWS && field) rows.set(Number(number), { ...rows.get(Number(number)), [field]: value });
  }
  return [...rows].sort(([one], [other]) => one - other)
    .map(([number, { lora_name: name, strength, enabled = true }]) => ({ number, on: enabled === true, name, strength }));
}

/**
 * A node's values by the names of its widgets, whichever way they are saved.
 *
 * @param {any} node
 * @returns {Record<string, any> | undefined}
 */
function valuesOf({ widgets_values: values = [], widgets_values_named: named }) {
  if (!Array.isArray(values)) return values;
  const [count, ...rest] = values;
  const width = WIDTHS.find((fields) => rest.length === count * fields);
  if (width === undefined) return named;
  return Object.fromEntries(rest.map((value, i) => [widgetOf(Math.floor(i / width), FIELDS[i % width]), value]));
}

/**
 * @param {number} number of a row
 * @param {string} field
 */
export function widgetOf(number, field) {
  return `${ROWS}.${number}.${field}`;
}

/** @param {string} name of an input */
export function isOfRow(name) {
  return name.startsWith(`${ROWS}.`);
}

/**
 * What the widgets of a node with these rows are called, and their values.
 *
 * @param {Row[]} rows
 * @param {Blank | undefined} blank a new node, where the front end has it
 */
export function widgetsFor(rows, blank) {
  const known = blank?.widgets.includes(widgetOf(0, FIELDS[0])) ? blank.widgets : undefined;
  const fields = known ? FIELDS.filter((field) => known.includes(widgetOf(0, field))) : FIELDS;
  const hasSwitch = fields.includes("enabled");
  /** @type {Record<string, unknown>} */
  const values = { [ROWS]: rows.length };
  rows.forEach(({ on, name, strength }, i) => {
    values[widgetOf(i, "lora_name")] = name;
    values[widgetOf(i, "strength")] = on || hasSwitch ? strength : 0;
    values[widgetOf(i, "enabled")] = on;
  });
  return { values, widgets: [ROWS, ...rows.flatMap((_, i) => fields.map((field) => widgetOf(i, field)))] };
}

/**
 * A new node of such a type as it is saved, for front ends that do not have it: it was missing before, too.
 *
 * @param {string} type
 * @returns {Blank}
 */
export function missingBlank(type) {
  const { socket, type: kind } = GROUPED[type];
  const saved = {
    type,
    size: SIZE,
    inputs: [{ name: socket, type: kind, link: null }],
    outputs: [{ name: kind, type: kind, links: [] }],
    properties: { "Node name for S&R": type },
    widgets_values: [],
  };
  return { saved, widgets: [] };
}
