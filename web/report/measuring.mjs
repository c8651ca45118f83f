/** A line that tells how far a measurement is, and ends it or begins it anew. */

import { make, makeButton } from "../shared/dom.mjs";
import { isAbort } from "./measure.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

export class Measuring {
  progress = make("progress", "");
  told = make("span", "locksmith-quiet");
  act = makeButton("locksmith-copy", "", () => (this.running ? this.running.abort() : void this.start()));

  /**
   * @param {(progress: (done: number, total: number) => void, signal: AbortSignal) => Promise<string | void>} work gives what is said
   *   of its result
   * @param {AbortSignal} closed ends it
   * @param {boolean} offers whether there is a button to begin with, where it does not run
   */
  constructor(work, closed, offers) {
    this.work = work;
    this.offers = offers;
    /** @type {AbortController | undefined} */
    this.running = undefined;
    this.told.setAttribute("role", "status");
    this.progress.setAttribute("aria-label", say("measuring"));
    this.element = make("span", "locksmith-measuring", this.progress, this.told, this.act);
    closed.addEventListener("abort", () => this.running?.abort());
    this.show("");
  }

  async start() {
    if (this.running) return;
    const running = (this.running = new AbortController());
    this.show(say("measuring"));
    let said = "";
    try {
      said = (await this.work((done, total) => this.tell(done, total), running.signal)) ?? "";
    } catch (fault) {
      if (!isAbort(fault)) said = fault instanceof Error ? fault.message : String(fault);
    }
    this.running = undefined;
    this.show(said);
  }

  /**
   * @param {number} done
   * @param {number} total 0: it has not begun
   */
  tell(done, total) {
    this.progress.max = total || 1;
    this.progress.value = done;
  }

  /** Nothing is left to be begun. */
  done() {
    this.offers = false;
  }

  /** @param {string} words */
  show(words) {
    this.told.textContent = words;
    this.progress.hidden = !this.running;
    this.progress.value = 0;
    this.act.textContent = say(this.running ? "measureStop" : "measureStart");
    this.act.hidden = !this.running && !this.offers;
  }
}
