/** Reads and writes the rows of a stack: the JSON text its node keeps, and what people do to it. */

/**
 * One LoRA; without `strength_clip` the text encoder gets `strength` too. `blocks`: weights for its parts, where a node takes them.
 *
 * @typedef {{on: boolean, name: string, strength: number, strength_clip?: number, blocks?: string}} Row
 */

const STRONGEST = 100;
const MAX_IN_VIEW = 12;
const ROW = 30; // pixels, as in stack.css

/**
 * The height that rows take at least, in pixels; more of them than are in view scroll.
 *
 * @param {number} count
 * @param {number} [most] that are in view
 */
export function heightOfRows(count, most = MAX_IN_VIEW) {
  return ROW * Math.max(1, Math.min(count, most));
}

/**
 * The rows a text stands for; null where it stands for none.
 *
 * @param {unknown} text
 * @returns {Row[] | null}
 */
export function readRows(text) {
  try {
    const rows = typeof text === "string" ? JSON.parse(text.trim() || "[]") : text;
    return Array.isArray(rows) && rows.every(isRow) ? rows.map((row) => ({ on: true, strength: 1, ...row })) : null;
  } catch {
    return null;
  }
}

/** @param {any} row */
function isRow(row) {
  const { on = true, name, strength = 1, strength_clip: clip = 1, blocks = "" } = row ?? {};
  const areTexts = typeof name === "string" && typeof blocks === "string";
  return typeof on === "boolean" && areTexts && [strength, clip].every((number) => Number.isFinite(number));
}

/** @param {Row[]} rows */
export function writeRows(rows) {
  return JSON.stringify(rows);
}

/**
 * @param {Row[]} rows
 * @param {number} from
 * @param {number} to
 * @returns {Row[]}
 */
export function moved(rows, from, to) {
  const others = rows.filter((_, index) => index !== from);
  return [...others.slice(0, to), rows[from], ...others.slice(to)];
}

/**
 * A row with another strength on the text encoder: none of its own where it is the same.
 *
 * @param {Row} row
 * @param {number} strength
 * @returns {Row}
 */
export function withClip(row, strength) {
  const { strength_clip: _, ...rest } = row;
  return strength === row.strength ? rest : { ...rest, strength_clip: strength };
}

/**
 * A row with weights for its parts: without any where all are 1.
 *
 * @param {Row} row
 * @param {string} blocks
 * @returns {Row}
 */
export function withBlocks(row, blocks) {
  const { blocks: _, ...rest } = row;
  return blocks.trim() ? { ...rest, blocks: blocks.trim() } : rest;
}

/**
 * A number as a person writes it, kept within the limits; nothing where it is none.
 *
 * @param {string} text
 * @returns {number | undefined}
 */
export function readNumber(text) {
  const number = Number(text.trim().replace(",", "."));
  return text.trim() && Number.isFinite(number) ? rounded(number) : undefined;
}

/** @param {number} number */
export function rounded(number) {
  return Math.round(Math.min(STRONGEST, Math.max(-STRONGEST, number)) * 1e4) / 1e4;
}

/**
 * A file's folder, with the slash, and its name without the ending.
 *
 * @param {string} name
 * @returns {[string, string]}
 */
export function folderAndTitle(name) {
  const cut = Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\")) + 1;
  return [name.slice(0, cut), name.slice(cut).replace(/\.(safetensors|sft|pt|pth|ckpt|bin)$/i, "")];
}
