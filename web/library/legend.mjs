/** What the marks of the library mean, how many files have each, and a press on one shows those alone. */

import { make } from "../shared/dom.mjs";
import { STATES } from "./rows.mjs";
import { explainState, makeMark, tellChoice } from "./words.mjs";
import { say } from "../i18n/words.mjs";

export class Legend {
  /** @param {(state: string) => void} onChoose "" for all */
  constructor(onChoose) {
    this.onChoose = onChoose;
    /** @type {Map<string, HTMLButtonElement>} */
    this.buttons = new Map(STATES.map((state) => [state, this.makeButton(state)]));
    this.element = make("div", "shelf-legend", ...this.buttons.values());
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", say("libraryLegend"));
  }

  /** @param {string} state */
  makeButton(state) {
    const button = make("button", "shelf-chip", ...(state === "problem" ? [] : [makeMark(state)]), tellChoice(state), make("b", ""));
    button.type = "button";
    button.title = explainState(state);
    button.addEventListener("click", () => this.onChoose(button.getAttribute("aria-pressed") === "true" ? "" : state));
    return button;
  }

  /**
   * @param {Map<string, number>} counts
   * @param {string} chosen
   */
  show(counts, chosen) {
    for (const [state, button] of this.buttons) {
      const count = counts.get(state) ?? 0;
      button.hidden = !count && state !== chosen;
      button.setAttribute("aria-pressed", String(state === chosen));
      /** @type {HTMLElement} */ (button.lastChild).textContent = count.toLocaleString();
    }
  }
}
