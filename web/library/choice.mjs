/** What the reader of the library chooses: the fields that offer it, and the memory of it in this browser. */

import { make } from "../shared/dom.mjs";
import { fromStorage, toStorage } from "../shared/stored.mjs";
import { EVERYTHING, SORT_NAMES, STATES } from "./rows.mjs";
import { tellUntold } from "./words.mjs";

/** @typedef {import("./rows.mjs").Choice} Choice */

const KEPT = "loralocksmith.library";

/**
 * @param {string} label
 * @param {(value: string) => void} onChange
 */
export function makeSelect(label, onChange) {
  const select = make("select", "shelf-field");
  select.setAttribute("aria-label", label);
  select.title = label;
  select.addEventListener("change", () => onChange(select.value));
  return select;
}

/**
 * Offer the values of a filter with how many rows each would leave.
 *
 * @param {HTMLSelectElement} select
 * @param {string} all what stands for no filter
 * @param {Map<string, number>} counts
 * @param {string} chosen
 */
export function offer(select, all, counts, chosen) {
  const values = [...new Set([...counts.keys(), ...(chosen ? [chosen] : [])])].sort((a, b) => a.localeCompare(b));
  const texts = values.map((value) => `${tellUntold(value)} (${(counts.get(value) ?? 0).toLocaleString()})`);
  const told = JSON.stringify([all, texts]);
  if (select.dataset.told !== told) {
    select.dataset.told = told;
    select.replaceChildren(new Option(all, ""), ...values.map((value, index) => new Option(texts[index], value)));
  }
  select.value = chosen;
  select.classList.toggle("shelf-chosen", Boolean(chosen));
}

/** @returns {Choice} the last one in this browser */
export function recallChoice() {
  /** @type {any} */
  const choice = { ...EVERYTHING };
  const kept = fromStorage("localStorage", KEPT) ?? {};
  for (const [name, value] of Object.entries(choice)) if (typeof kept[name] === typeof value) choice[name] = kept[name];
  if (!SORT_NAMES.includes(choice.sort)) choice.sort = EVERYTHING.sort;
  if (!STATES.includes(choice.state)) choice.state = EVERYTHING.state;
  return choice;
}

/** @param {Choice} choice */
export function keepChoice(choice) {
  toStorage("localStorage", KEPT, choice);
}
