/** The form that saves a file of the library in another tool's names, as a new file. */

import { make } from "../shared/dom.mjs";
import { order, Refusal } from "../shared/server.mjs";
import { say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

const USUAL = "comfyui";

/**
 * @param {Row} row
 * @param {{onSaved: (file: string) => void, dialects: () => string[]}} around
 * @returns {HTMLFormElement} hidden at first
 */
export function copyOf(row, around) {
  const title = (/** @type {string} */ name) => (name === USUAL ? say("repairNative", { name }) : name);
  const dialect = make("select", "shelf-field", ...around.dialects().map((name) => new Option(title(name), name)));
  if (around.dialects().includes(USUAL)) dialect.value = USUAL;
  const name = make("input", "shelf-field");
  const propose = () => `${row.folder ? `${row.folder}/` : ""}${row.name}_${dialect.value}`;
  name.value = propose();
  let proposed = name.value;
  dialect.addEventListener("change", () => {
    if (name.value === proposed) name.value = proposed = propose();
  });
  const button = make("button", "shelf-button shelf-first", say("librarySaveNow"));
  const told = make("p", "shelf-told");
  told.setAttribute("role", "status");
  const model = make("select", "shelf-field");
  const asked = labelled("libraryBaseModel", model);
  asked.hidden = true; // until the file turns out not to tell it
  const fields = [labelled("libraryDialect", dialect), labelled("libraryFileName", name), asked];
  const form = make("form", "shelf-copy-form", ...fields, button, told);
  form.hidden = true;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    told.textContent = say("librarySaving");
    const wish = { name: row.file, dialect: dialect.value, filename: name.value, dtype: "", overwrite: false, model: model.value };
    try {
      told.textContent = await save(wish, around.onSaved);
    } catch (fault) {
      told.textContent = fault instanceof Error ? fault.message : String(fault);
      if (fault instanceof Refusal && fault.models) offerModels(model, fault.models);
      asked.hidden = !model.options.length;
      if (fault instanceof Refusal && fault.models) model.focus();
    }
    button.disabled = false;
  });
  return form;
}

/**
 * @param {string} text key of the label
 * @param {HTMLElement} field
 */
export function labelled(text, field) {
  return make("label", "", make("span", "shelf-faint", say(text)), field);
}

/**
 * @param {HTMLSelectElement} select
 * @param {Record<string, string>} models by name: what people call them
 */
export function offerModels(select, models) {
  select.replaceChildren(new Option(say("libraryChooseModel"), ""), ...Object.entries(models).map(([name, title]) => new Option(title, name)));
}

/**
 * @param {Record<string, unknown>} wish
 * @param {(file: string) => void} onSaved
 * @returns {Promise<string>} what became of it
 */
async function save(wish, onSaved) {
  const answer = await order("save", wish);
  onSaved(answer.file);
  return tell(answer.report, answer.translations);
}
