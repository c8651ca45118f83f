/** The box a node shows its report in: the verdict above, the rest below it, and a button that copies all of it. */

import { app } from "../../scripts/app.js";
import { copyText, make, readStyle } from "./dom.js";
import { fromMarkdown, fromPlainText } from "./markup.js";
import { say } from "./words.js";

/** Longer reports are cut on the screen: rendering costs time, and nobody scrolls through more. */
const MOST_SHOWN = 200_000;
const SECONDS_TOLD = 1.5;
/** Keys that scroll, press or select in the box; without a modifier they are shortcuts of the canvas. */
const OWN_KEYS = new Set([" ", "Enter", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown", "Home", "End"]);

let style = "";

/** Get the look of all boxes. A link in each box would load it anew whenever the front end moves the box, and show it bare meanwhile. */
export async function loadStyle() {
  style = await readStyle("./report.css");
}

export class ReportView {
  /**
   * @param {boolean} isMarkdown whether reports are Markdown, and not text that is shown as it stands
   * @param {number} least the height the box never goes below, in pixels
   */
  constructor(isMarkdown, least) {
    this.isMarkdown = isMarkdown;
    this.text = "";
    this.verdict = make("div", "locksmith-verdict");
    this.button = make("button", "locksmith-copy");
    this.body = make("div", "locksmith-body");
    this.element = make("section", "locksmith-report");
    this.element.dataset.captureWheel = "true"; // the Vue nodes' sign for: scrolls once it has the focus
    this.element.style.minHeight = `${least}px`;
    const head = make("div", "locksmith-head");
    head.append(this.verdict, this.button);
    // Its look is brought along inside the box, because the page's head belongs to all packs.
    this.element.append(Object.assign(document.createElement("style"), { textContent: style }), head, this.body);
    this.button.type = "button";
    this.button.setAttribute("aria-live", "polite");
    this.button.addEventListener("click", () => this.copy());
    for (const part of [this.verdict, this.body]) makeReachable(part);
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.element.addEventListener("wheel", (event) => this.passWheelOn(event), { passive: false });
    this.element.addEventListener("pointerdown", (event) => this.passMiddleButtonOn(event));
  }

  /**
   * Show a report.
   *
   * @param {string} text the report, its verdict first
   * @param {string} title of the node, for people who hear the page
   */
  show(text, title) {
    const shown = text.length > MOST_SHOWN ? text.slice(0, MOST_SHOWN) : text;
    const parts = this.isMarkdown ? fromMarkdown(shown) : fromPlainText(shown);
    this.text = text;
    this.verdict.replaceChildren(parts.firstElementChild ?? "");
    this.body.replaceChildren(parts);
    if (shown !== text) this.body.append(Object.assign(make("p", "locksmith-cut"), { textContent: say("cut") }));
    this.body.hidden = !this.body.hasChildNodes();
    this.body.scrollTop = 0;
    this.element.setAttribute("aria-label", say("report", { node: title }));
    this.verdict.setAttribute("aria-label", say("verdict", { node: title }));
    this.body.setAttribute("aria-label", say("report", { node: title }));
    this.button.textContent = say("copy");
    this.button.title = say("copyHint");
  }

  async copy() {
    const copied = await copyText(this.text, this.element);
    this.button.textContent = say(copied ? "copied" : "notCopied");
    setTimeout(() => (this.button.textContent = say("copy")), SECONDS_TOLD * 1000);
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
      event.preventDefault(); // the canvas would select all nodes
      event.stopPropagation();
      getSelection()?.selectAllChildren(this.element);
    } else if (!modified && OWN_KEYS.has(event.key)) {
      event.stopPropagation();
    }
  }

  /**
   * On the classic canvas the box lies over the canvas, which never hears the wheel: what does not scroll the report zooms or pans.
   *
   * @param {WheelEvent} event
   */
  passWheelOn(event) {
    if (globalThis.LiteGraph?.vueNodesMode) return;
    const isGesture = event.ctrlKey || event.metaKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const part = [this.body, this.verdict].find((part) => part.contains(/** @type {Node} */ (event.target)));
    if (!isGesture && part && part.scrollHeight > part.clientHeight) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  }

  /** @param {PointerEvent} event */
  passMiddleButtonOn(event) {
    if (event.button === 1 && !globalThis.LiteGraph?.vueNodesMode) app.canvas.processMouseDown(event);
  }
}

/** @param {HTMLElement} part that can be scrolled, by keys too */
function makeReachable(part) {
  part.tabIndex = 0;
  part.setAttribute("role", "group");
}
