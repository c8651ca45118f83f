/** Draws a node's outcome on the classic canvas where its panel cannot be seen: collapsed, or far away. */

import { shortly } from "./outcome.mjs";

/** Background and text of a state, as in the style sheet. */
const COLOURS = { good: ["#1a7340", "#fff"], part: ["#e3a008", "#1a1300"], bad: ["#b3261e", "#fff"] };
const BELOW = 6;

/**
 * Have a node draw what `tell` says of it.
 *
 * @param {any} node
 * @param {() => import("./outcome.mjs").Outcome | null} tell
 */
export function drawMark(node, tell) {
  const before = node.onDrawForeground;
  /** @this {any} @param {CanvasRenderingContext2D} context @param {any} canvas @param {...any} rest */
  node.onDrawForeground = function (context, canvas, ...rest) {
    before?.call(this, context, canvas, ...rest);
    if (!this.flags.collapsed && !canvas.low_quality) return;
    const outcome = tell();
    if (outcome?.state) draw(context, this, shortly(outcome), COLOURS[outcome.state]);
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
