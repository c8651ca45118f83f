/** A field for a strength: typed, stepped with the arrow keys, or dragged. */

import { make } from "../shared/dom.mjs";
import { readNumber, rounded } from "./rows.mjs";

const STEP = 0.05;
const LEAP = 0.5;
const PIXELS_A_STEP = 6;
/** @type {Record<string, number>} */
const KEYS = { ArrowUp: STEP, ArrowDown: -STEP, PageUp: LEAP, PageDown: -LEAP };

export class StrengthField {
  /**
   * @param {string} name of its class
   * @param {(value: number) => void} change is told each value on the way
   * @param {() => void} settle is told that a person is done
   */
  constructor(name, change, settle) {
    this.change = change;
    this.settle = settle;
    this.value = 1;
    this.stepped = false;
    /** @type {{x: number, value: number, moved: boolean} | null} */
    this.drag = null;
    this.element = make("input", `locksmith-strength ${name}`);
    this.element.inputMode = "decimal";
    this.element.autocomplete = "off";
    this.element.setAttribute("role", "spinbutton");
    this.element.addEventListener("change", () => this.take());
    this.element.addEventListener("blur", () => this.end());
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.element.addEventListener("keyup", () => this.end());
    this.listenForDrags();
  }

  /**
   * @param {number} value
   * @param {string} label
   */
  show(value, label) {
    this.value = value;
    const text = value.toFixed(Math.max(2, `${value}`.split(".")[1]?.length ?? 0));
    if (this.element.value !== text) this.element.value = text;
    this.element.setAttribute("aria-valuenow", `${value}`);
    this.element.setAttribute("aria-label", label);
    this.element.title = label;
  }

  /** Take what was typed. */
  take() {
    const value = readNumber(this.element.value);
    this.show(this.value, this.element.title);
    if (value === undefined || value === this.value) return;
    this.change(value);
    this.settle();
  }

  /** @param {number} value */
  go(value) {
    this.stepped = true;
    this.change(rounded(value));
  }

  end() {
    if (!this.stepped) return;
    this.stepped = false;
    this.settle();
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    if (event.key === "Enter") this.take(); // with Ctrl it runs the workflow, which needs the new value
    if (event.key === "Escape") {
      event.stopPropagation(); // which would leave a subgraph
      this.show(this.value, this.element.title);
    }
    const step = KEYS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.take();
    this.go(this.value + step);
  }

  listenForDrags() {
    this.element.addEventListener("pointerdown", (event) => {
      if (event.button || document.activeElement === this.element) return; // there a drag selects what was typed
      event.preventDefault();
      this.element.setPointerCapture(event.pointerId);
      this.drag = { x: event.clientX, value: this.value, moved: false };
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      const steps = Math.trunc((event.clientX - this.drag.x) / PIXELS_A_STEP);
      this.drag.moved ||= steps !== 0;
      if (this.drag.moved) this.go(this.drag.value + steps * STEP);
    });
    this.element.addEventListener("pointerup", () => {
      if (this.drag && !this.drag.moved) {
        this.element.focus({ preventScroll: true });
        this.element.select();
      }
      this.drag = null;
      this.end();
    });
    this.element.addEventListener("pointercancel", () => {
      this.drag = null;
      this.end();
    });
  }
}
