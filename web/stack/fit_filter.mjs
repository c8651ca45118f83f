/** Leaves out files that are for another model than the one that is wired. */

import { makeButton } from "../shared/dom.mjs";
import { ask } from "../shared/server.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("../preview/preview.mjs").ModelFile} ModelFile */

const PAUSE = 1000; // milliseconds between two questions while the server reads its library
let isWanted = false; // stays for the next list that opens

export class FitFilter {
  /**
   * @param {ModelFile | null} model
   * @param {() => void} changed called whenever another choice of files is right
   */
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
    this.ended = new AbortController();
    /** @type {{fits: Set<string>, others: Set<string>} | undefined} what the server knows */
    this.known = undefined;
    this.fault = "";
    this.element = makeButton("locksmith-chooser-fits", say("stackFits"), () => this.turn());
    this.element.title = say("stackFitsHint", { model: model?.name ?? "" });
    this.element.hidden = !model;
    this.show();
  }

  get on() {
    return isWanted && this.model !== null;
  }

  show() {
    this.element.setAttribute("aria-pressed", `${this.on}`);
  }

  start() {
    if (this.on) void this.read();
  }

  turn() {
    isWanted = !isWanted;
    this.show();
    this.changed();
    if (this.on && !this.known) void this.read();
  }

  end() {
    this.ended.abort();
  }

  /** Ask until all is told that will be. */
  async read() {
    const { signal } = this.ended;
    const { folder, name } = /** @type {ModelFile} */ (this.model);
    let first = 1; // then the server looks for files that its library has not seen
    for (let running = true; running && this.on && !signal.aborted; first = 0) {
      try {
        const answer = await ask("fits", { model_folder: folder, model: name, refresh: first }, signal);
        this.known = { fits: new Set(answer.fits), others: new Set(answer.others) };
        ({ running } = answer);
        this.fault = "";
      } catch (fault) {
        running = false;
        this.fault = fault instanceof Error ? fault.message : String(fault);
      }
      if (signal.aborted) return;
      this.changed();
      if (running) await new Promise((done) => setTimeout(done, PAUSE));
    }
  }

  /** @param {string} file */
  lets(file) {
    return !this.on || !this.known?.others.has(file);
  }

  /** @param {string} file */
  isUntold(file) {
    return this.on && this.known !== undefined && !this.known.fits.has(file) && !this.known.others.has(file);
  }

  /**
   * What is to be said of what is left.
   *
   * @param {string[]} files
   */
  tell(files) {
    if (!this.on) return "";
    if (!this.known) return this.fault || say("stackFitsAsking");
    const count = files.filter((file) => this.isUntold(file)).length;
    return count ? say("stackUntoldCount", { count }) : "";
  }
}
