/** Offers presets of layer weights for a LoRA file, in a menu: those of its model, and what each leaves of it. */

import { app } from "../../../scripts/app.js";
import { widgetOf } from "../shared/graph.mjs";
import { listedAs } from "../shared/names.mjs";
import { ask, Refusal, tellAway } from "../shared/server.mjs";
import { openMenu } from "./menu.mjs";
import { say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/**
 * What the route "layer_presets" tells of one.
 *
 * @typedef {{name: string, title: string, kind: string, text: string, about: string, fault: string}} Preset
 */

const TITLES = /** @type {Record<string, string>} */ ({
  character: "layersCharacter",
  style: "layersStyle",
  composition: "layersComposition",
  part: "layersPart",
});
const WIDGET = "layer_weights";

/**
 * @param {string} file as listed
 * @param {string} current what the layer weights are now
 * @param {{x: number, y: number, top?: number}} place
 * @param {HTMLElement} home
 * @param {(text: string) => void} choose takes what is to be written; "": all of the LoRA
 */
export async function offerLayerPresets(file, current, place, home, choose) {
  let answer;
  try {
    answer = await ask("layer_presets", { name: file });
  } catch (fault) {
    return tellAway(say("menuPresets"), fault);
  }
  const presets = answer.presets.map((/** @type {Preset} */ preset) => told(preset, answer.translations));
  openMenu(place, home, say("layersOf", { file }), entriesOf(presets, current, choose));
}

/**
 * @param {Preset} preset
 * @param {import("../i18n/words.mjs").Translations} translations
 */
function told(preset, translations) {
  const [title, about, fault] = [preset.title, preset.about, preset.fault].map((text) => tell(text, translations));
  return { ...preset, title, about, fault };
}

/**
 * @param {Preset[]} presets
 * @param {string} current
 * @param {(text: string) => void} choose
 * @returns {import("./menu.mjs").Entry[]}
 */
function entriesOf(presets, current, choose) {
  const groups = Object.entries(TITLES).map(([kind, title]) => {
    const group = presets.filter((preset) => preset.kind === kind);
    const entries = group.map((preset) => ({
      text: preset.title,
      hint: [preset.name, preset.text, preset.fault || preset.about].filter((line, at, all) => line && all.indexOf(line) === at).join("\n"),
      isOff: Boolean(preset.fault),
      act: () => choose(preset.text),
    }));
    return entries.length ? [null, say(title), ...entries] : [];
  });
  return [{ text: say("layersAll"), isOff: !current, hint: say("layersAllHint"), act: () => choose("") }, ...groups.flat()];
}

/**
 * Offer them for the file of a loader, whose layer weights they become.
 *
 * @param {any} node
 * @param {string[]} files that are listed
 */
export function offerForLoader(node, files) {
  const [widget, name] = [widgetOf(node, WIDGET), String(widgetOf(node, "lora_name")?.value ?? "")];
  const isLinked = node.inputs?.some((/** @type {any} */ input) => input.name === WIDGET && input.link != null);
  if (isLinked) return tellAway(say("menuPresets"), new Refusal(say("layersLinked")));
  const choose = (/** @type {string} */ text) => {
    app.canvas.emitBeforeChange();
    widget.value = text;
    widget.callback?.(text);
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
  };
  return offerLayerPresets(listedAs(name, files) || name, widget.value, placeOf(node), app.canvas.canvas, choose);
}

/**
 * A node's corner on the page.
 *
 * @param {any} node
 */
function placeOf(node) {
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  const [x, y] = [0, 1].map((axis) => (node.pos[axis] + offset[axis]) * scale);
  return { x: Math.max(left, left + x), y: Math.max(top, top + y) };
}
