/** The list a stack's node shows: its rows, and what turns, adds and moves them. */

import { make, makeButton } from "../shared/dom.mjs";
import { passMiddleButtonOn, passWheelOn } from "../shared/panel.mjs";
import { say } from "../i18n/words.mjs";
import { StackRow } from "./row.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/** @typedef {import("./row.mjs").Orders} Orders */

/**
 * What the list asks of its stack, beside what its rows ask.
 *
 * @typedef {object} Wishes
 * @property {(index: number, to: number, isDone: boolean) => void} move
 * @property {(on: boolean) => void} turnAll
 * @property {() => void} toggleClip
 * @property {() => void} show
 */

const PARTS = ["handle", "switch", "name", "model", "clip", "blocks", "more", "remove"].map((part) => `locksmith-stack-${part}`);

const STEPS = /** @type {Record<string, number>} */ ({ ArrowUp: -1, ArrowDown: 1 });
const ARROWS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const OWN_KEYS = new Set([...ARROWS, "Enter", " ", "Delete", "Backspace", "Home", "End", "PageUp", "PageDown"]);

export class StackView {
  /**
   * @param {Orders & Wishes} orders
   * @param {boolean | "asked"} blocks whether rows have weights for parts of their LoRAs: shown always, or when asked for
   */
  constructor(orders, blocks) {
    this.orders = orders;
    this.blocks = blocks;
    this.showLayers = false;
    /** @type {StackRow[]} */
    this.rows = [];
    this.all = makeButton("locksmith-stack-switch locksmith-stack-all", "", () => orders.turnAll(this.all.ariaChecked !== "true"));
    this.all.setAttribute("role", "checkbox");
    this.count = make("span", "locksmith-stack-count");
    this.clip = makeButton("locksmith-stack-button", "CLIP", orders.toggleClip);
    this.layers = makeButton("locksmith-stack-button", "", () => {
      this.showLayers = !this.showLayers;
      orders.show();
    });
    this.layers.hidden = blocks !== "asked";
    this.list = make("ol", "locksmith-stack-list");
    this.add = makeButton("locksmith-stack-button locksmith-stack-add", "", () => orders.choose(-1, this.add));
    this.fault = make("p", "locksmith-stack-fault");
    this.fault.setAttribute("role", "alert");
    this.said = make("span", "locksmith-stack-said");
    this.said.setAttribute("role", "status");
    this.head = make("div", "locksmith-stack-head", this.all, this.count, this.said, this.layers, this.clip);
    this.element = make("section", "locksmith-stack", this.head, this.fault, this.list, this.add);
    this.element.dataset.captureWheel = "true"; // the Vue nodes' sign for: scrolls once it has the focus
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.list.addEventListener("pointerdown", (event) => this.startDrag(event));
    this.list.addEventListener("contextmenu", (event) => this.offer(event));
    this.element.addEventListener("wheel", passWheelOn, { passive: false });
    this.element.addEventListener("pointerdown", passMiddleButtonOn);
  }

  /**
   * @param {Row[] | null} rows null where the node's text stands for none
   * @param {boolean} withClip whether the text encoder's strengths are shown
   * @param {string} title of the node
   */
  show(rows, withClip, title) {
    const shown = rows ?? [];
    while (this.rows.length > shown.length) this.rows.pop()?.element.remove();
    while (this.rows.length < shown.length) {
      const row = new StackRow(this.rows.length, this.orders);
      this.rows.push(row);
      this.list.append(row.element);
    }
    const someClip = withClip || shown.some((row) => row.strength_clip !== undefined);
    const someBlocks = this.blocks === true || this.showLayers || shown.some((row) => row.blocks);
    this.rows.forEach((row, index) => row.show(shown[index], someClip, someBlocks));
    this.layers.textContent = say("stackLayers");
    this.layers.setAttribute("aria-pressed", `${someBlocks}`);
    this.layers.title = say("stackLayersHint");
    this.element.setAttribute("aria-label", say("stackOf", { node: title }));
    this.list.setAttribute("aria-label", say("stackOf", { node: title }));
    this.clip.setAttribute("aria-pressed", `${withClip}`);
    this.clip.title = say("stackClipHint");
    this.add.textContent = say(rows ? "stackAdd" : "stackClear");
    this.fault.textContent = rows ? "" : say("stackFault");
    this.fault.hidden = Boolean(rows);
    this.showCount(shown);
  }

  /** @param {Row[]} rows */
  showCount(rows) {
    const on = rows.filter((row) => row.on).length;
    this.all.ariaChecked = on && on === rows.length ? "true" : on ? "mixed" : "false";
    this.all.disabled = !rows.length;
    this.all.setAttribute("aria-label", say("stackAll"));
    this.all.title = say("stackAll");
    this.count.textContent = rows.length ? say("stackCount", { on, count: rows.length }) : say("stackEmpty");
  }

  /**
   * Give the focus to a part of a row, without moving the page.
   *
   * @param {number} index
   * @param {string} part its class
   */
  focus(index, part) {
    const row = this.rows[Math.max(0, Math.min(index, this.rows.length - 1))]?.element;
    const target = /** @type {HTMLElement} */ (row?.querySelector(`.${part}:not([hidden])`) ?? this.add);
    target.focus({ preventScroll: true });
    if (!row) return;
    const top = row.offsetTop - this.list.offsetTop;
    this.list.scrollTop = Math.min(top, Math.max(this.list.scrollTop, top + row.offsetHeight - this.list.clientHeight));
  }

  /** @param {MouseEvent} event which the canvas has a menu for too; in a field that is typed in the browser's pastes */
  offer(event) {
    event.stopPropagation();
    const index = this.indexOf(event.target);
    if (index < 0 || (event.target instanceof HTMLInputElement && event.target === document.activeElement)) return;
    event.preventDefault();
    this.orders.offer(index, { x: event.clientX, y: event.clientY });
  }

  /** @param {EventTarget | null} target */
  indexOf(target) {
    return this.rows.findIndex((row) => row.element.contains(/** @type {Node | null} */ (target)));
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const [index, typing] = [this.indexOf(target), target instanceof HTMLInputElement];
    const part = PARTS.find((name) => target.classList.contains(name)) ?? PARTS[0];
    const step = STEPS[event.key] ?? 0;
    if (event.ctrlKey || event.metaKey || (event.altKey && !step)) return;
    if (OWN_KEYS.has(event.key)) event.stopPropagation(); // the canvas has other uses for them
    if (index < 0 || (typing && !event.altKey)) return;
    if (event.altKey) this.moveBy(index, step, part);
    else if (step) this.focus(index + step, part);
    else if (event.key === "Delete" || event.key === "Backspace") this.orders.remove(index);
    else return;
    event.preventDefault();
  }

  /**
   * @param {number} index
   * @param {number} step
   * @param {string} part of the row that has the focus
   */
  moveBy(index, step, part) {
    const to = index + step;
    if (to < 0 || to >= this.rows.length) return;
    this.orders.move(index, to, true);
    this.focus(to, part);
    this.said.textContent = say("stackMoved", { place: to + 1, count: this.rows.length });
  }

  /** @param {PointerEvent} event */
  startDrag(event) {
    const handle = /** @type {HTMLElement} */ (event.target);
    let at = handle.classList.contains(PARTS[0]) && !event.button ? this.indexOf(handle) : -1;
    if (at < 0) return;
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    this.markDragged(at);
    const stop = new AbortController();
    const listen = { signal: stop.signal };
    handle.addEventListener("pointermove", ({ clientY }) => {
      const to = this.placeUnder(clientY, at);
      if (to === at) return;
      this.orders.move(at, to, false);
      this.markDragged((at = to));
    }, listen);
    for (const end of ["pointerup", "pointercancel"]) {
      handle.addEventListener(end, () => {
        stop.abort();
        this.markDragged(-1);
        this.focus(at, PARTS[0]);
        this.orders.settle();
      }, listen);
    }
  }

  /**
   * The place a dragged row goes to; at the list's ends it scrolls.
   *
   * @param {number} y on the page
   * @param {number} from
   */
  placeUnder(y, from) {
    const view = this.list.getBoundingClientRect();
    const row = this.rows[from].element.getBoundingClientRect().height;
    if (y < view.top + row / 2) this.list.scrollTop -= row / 2;
    if (y > view.bottom - row / 2) this.list.scrollTop += row / 2;
    const middles = this.rows.map(({ element }) => element.getBoundingClientRect().top + row / 2);
    return middles.filter((middle, index) => index !== from && y > middle).length;
  }

  /** @param {number} index of the row that is dragged, or -1 */
  markDragged(index) {
    this.rows.forEach((row, at) => row.element.classList.toggle("locksmith-stack-dragged", at === index));
  }
}
