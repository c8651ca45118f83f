/** The one place on a node where this pack shows things, which leaves no trace in the workflow. */

import { app } from "../../../scripts/app.js";
import { make } from "./dom.mjs";

const WIDGET = "locksmith_report";
const MARGIN = 6;
/** A node's height may come out otherwise by what is left when parts of pixels are rounded. */
const ROUNDED = 2;
/** Keys that scroll, press or select in a panel; without a modifier they are shortcuts of the canvas. */
const OWN_KEYS = new Set([" ", "Enter", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown", "Home", "End"]);

/** @type {WeakMap<object, Panel>} */
const panels = new WeakMap();
let made = 0;

/**
 * @param {any} node
 * @returns {Panel | undefined}
 */
export function panelOf(node) {
  return panels.get(node);
}

/**
 * The panel of a node, which gets one if it has none.
 *
 * @param {any} node
 * @returns {Panel}
 */
export function givePanel(node) {
  const panel = panels.get(node) ?? new Panel(node);
  panels.set(node, panel);
  return panel;
}

/**
 * Have a node type's nodes be saved as if they had no panel.
 *
 * @param {any} node
 */
export function saveWithoutPanel(node) {
  const before = node.onSerialize;
  /** @this {any} @param {any} data */
  node.onSerialize = function (data) {
    before?.call(this, data);
    const panel = panels.get(this);
    if (panel && data.size) data.size[1] = panel.heightWithout;
  };
}

export class Panel {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.element = make("div", "locksmith-panel");
    this.element.dataset.captureWheel = "true"; // the Vue nodes' sign for: scrolls once it has the focus
    this.heightBefore = this.heightAfter = node.size[1];
    this.height = this.least = 0;
    /** What is shown: a view of a report, or of a file before it ran. */
    this.view = /** @type {any} */ (null);
    // A type of its own, because after an undo the Vue nodes keep showing the old node's element for a widget of the same type.
    this.widget = node.addDOMWidget(WIDGET, `${WIDGET}_${(made += 1)}`, this.element, {
      serialize: false,
      hideInPanel: true,
      margin: MARGIN,
      getMinHeight: () => this.least,
      getValue: () => "",
      setValue: () => {},
    });
    this.widget.serialize = false; // the option keeps it out of prompts, this out of workflows
    this.element.addEventListener("keydown", takeKey);
    this.element.addEventListener("wheel", passWheelOn, { passive: false });
    this.element.addEventListener("pointerdown", passMiddleButtonOn);
  }

  /**
   * Show a view in place of what is shown.
   *
   * @param {{element: HTMLElement}} view
   * @param {number} height the node grows by at first, in pixels
   * @param {number} least the height it never goes below
   */
  show(view, height, least) {
    if (this.view !== view) this.element.replaceChildren(view.element);
    this.view = view;
    this.least = least;
    this.element.style.minHeight = `${least - 2 * MARGIN}px`;
    this.grow(height - this.height);
    this.height = height;
  }

  remove() {
    panels.delete(this.node);
    this.node.removeWidget(this.widget);
    this.node.setSize([this.node.size[0], this.heightWithout]);
  }

  /** The node's height without the panel, in which what a person has dragged since is kept. */
  get heightWithout() {
    const dragged = this.node.size[1] - this.heightAfter;
    return Math.max(this.heightBefore, this.heightBefore + (Math.abs(dragged) < ROUNDED ? 0 : dragged));
  }

  /** @param {number} more */
  grow(more) {
    if (!more) return;
    const without = this.heightWithout;
    this.node.setSize([this.node.size[0], this.node.size[1] + more]);
    this.heightBefore = without;
    this.heightAfter = this.node.size[1];
    app.canvas.setDirty(true, true); // the classic canvas puts elements where they belong when it draws
  }

  /** @param {number} more height that something else on the node took, and that is saved */
  moveBy(more) {
    this.heightBefore += more;
    this.heightAfter += more;
  }
}

/** @param {KeyboardEvent} event */
function takeKey(event) {
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
    event.preventDefault(); // the canvas would select all nodes
    event.stopPropagation();
    getSelection()?.selectAllChildren(/** @type {HTMLElement} */ (event.currentTarget));
  } else if (!modified && OWN_KEYS.has(event.key)) {
    event.stopPropagation();
  }
}

/**
 * On the classic canvas an element on a node lies over the canvas, which never hears the wheel: what scrolls nothing zooms or pans.
 *
 * @param {WheelEvent} event
 */
export function passWheelOn(event) {
  if (globalThis.LiteGraph?.vueNodesMode) return;
  const isGesture = event.ctrlKey || event.metaKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
  const whole = /** @type {HTMLElement} */ (event.currentTarget);
  let part = /** @type {Element | null} */ (event.target);
  while (part && part !== whole && !scrolls(part)) part = part.parentElement;
  if (!isGesture && part && part !== whole) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

/** @param {Element} part */
function scrolls(part) {
  return part.scrollHeight > part.clientHeight && getComputedStyle(part).overflowY === "auto";
}

/**
 * The canvas pans by the middle button, also where something lies over it.
 *
 * @param {PointerEvent} event
 */
export function passMiddleButtonOn(event) {
  if (event.button === 1 && !globalThis.LiteGraph?.vueNodesMode) app.canvas.processMouseDown(event);
}
