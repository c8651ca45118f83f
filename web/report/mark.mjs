/** Draws a node's outcome on the classic canvas where its panel cannot be seen: collapsed, or far away. */

import { shortly, SIGNS } from "./outcome.mjs";

/** Background and text of a state, as in the style sheet. */
const COLOURS = { good: ["#1a7340", "#fff"], part: ["#e3a008", "#1a1300"], bad: ["#b3261e", "#fff"] };
const BELOW = 6;

/** @typedef {{state: import("./outcome.mjs").State, text: string}} Mark */

/**
 * @param {any} view what the node's panel shows
 * @returns {Mark | null}
 */
export function markOf(view) {
  const { line, outcome } = view ?? {};
  if (view?.hasFault) return { state: "bad", text: SIGNS.bad };
  if (line?.state) return { state: line.state, text: line.badge };
  return outcome?.state ? { state: outcome.state, text: shortly(outcome) } : null;
}

/**
 * Have a node draw what `tell` says of it.
 *
 * @param {any} node
 * @param {() => Mark | null} tell
 */
export function drawMark(node, tell) {
  const before = node.onDrawForeground;
  /** @this {any} @param {CanvasRenderingContext2D} context @param {any} canvas @param {...any} rest */
  node.onDrawForeground = function (context, canvas, ...rest) {
    before?.call(this, context, canvas, ...rest);
    if (!this.flags.collapsed && !canvas.low_quality) return;
    const mark = tell();
    if (mark) draw(context, this, mark.text, COLOURS[mark.state]);
  };
}

/**
 * A pill below a collapsed node's title; over the title of a node that is so far away that no text is drawn.
 *
 * @param {CanvasRenderingContext2D} context in the node's units
 * @param {any} node
 * @param {string} text
 * @param {string[]} colours
 */
function draw(context, node, text, [ground, ink]) {
  const title = globalThis.LiteGraph?.NODE_TITLE_HEIGHT ?? 30;
  const [top, height, size] = node.flags.collapsed ? [BELOW, 22, 12] : [-title, title, 22];
  context.save();
  context.font = `${size}px sans-serif`;
  const width = node.flags.collapsed ? context.measureText(text).width + size : node.size[0];
  context.fillStyle = ground;
  context.beginPath();
  context.roundRect(0, top, width, height, 5);
  context.fill();
  context.fillStyle = ink;
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(text, size / 2, top + height / 2, width - size);
  context.restore();
}
