/** What a node shows of its file before it ran: why its last run failed, what the file is, and whether it fits. */

import { make } from "../shared/dom.mjs";
import { aboutFile, fitOf } from "./fit.mjs";
import { say } from "../i18n/words.mjs";

export class Preview {
  constructor() {
    this.fault = make("p", "locksmith-fault");
    this.what = make("p", "locksmith-what");
    this.fit = make("p", "locksmith-fit");
    this.element = make("div", "locksmith-preview", this.fault, this.what, this.fit);
    this.element.setAttribute("role", "status"); // said when it changes
    this.element.tabIndex = 0; // can be scrolled by keys too
    this.tellFault("");
  }

  /** @param {string} title of the node */
  name(title) {
    this.element.setAttribute("aria-label", say("preview", { node: title }));
  }

  /**
   * @param {string} name
   * @param {any} answer of the route "file"
   */
  show(name, answer) {
    this.what.textContent = aboutFile(answer);
    this.what.title = name;
    const { stock, placed } = answer;
    const { state, words } = fitOf(answer);
    this.tellFit(state, words || (stock < placed ? say("previewStock", { stock, placed }) : ""));
  }

  /**
   * @param {string} state "" where nothing is to be said for or against the file
   * @param {string} words
   */
  tellFit(state, words) {
    this.fit.className = state ? `locksmith-fit locksmith-says-${state}` : "locksmith-fit";
    this.fit.textContent = this.fit.title = words;
  }

  /** @param {string} message why the node failed; "" where it did not */
  tellFault(message) {
    this.fault.textContent = this.fault.title = message;
    this.fault.hidden = !message;
  }

  get hasFault() {
    return !this.fault.hidden;
  }

  clear() {
    this.what.textContent = "";
    this.tellFit("", "");
  }
}
