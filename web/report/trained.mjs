/** What a file trains, as a map that is shaded by rank or, once the weights were measured, by energy. */

import { make, makeButton } from "../shared/dom.mjs";
import { heatMaps } from "./heat_map.mjs";
import { measure } from "./measure.mjs";
import { Measuring } from "./measuring.mjs";
import { asSentences, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/**
 * How much could not be measured, and why, as far as one reason says it.
 *
 * @param {import("./measure.mjs").Measured} measured
 */
function tellLeft({ left_out: left, translations }) {
  if (!left.length) return "";
  return asSentences(say("compareLeft", { count: left.length }), tell(left[0].reason, translations));
}

/**
 * @param {import("./heat_map.mjs").Network[]} networks
 * @param {import("./heat_map.mjs").Drawn} drawn
 * @param {string} file as the loras folders list it; "": there is none to be measured
 * @param {AbortSignal} closed
 * @returns {HTMLElement}
 */
export function trainedMap(networks, drawn, file, closed) {
  const maps = make("div", "");
  const show = (/** @type {boolean} */ byEnergy) => {
    drawn = { ...drawn, byEnergy };
    maps.replaceChildren(heatMaps(networks, drawn));
    byRank.setAttribute("aria-pressed", String(!byEnergy));
    byEnergyButton.setAttribute("aria-pressed", String(byEnergy));
  };
  const measuring = new Measuring(
    async (progress, signal) => {
      const measured = await measure({ name: file }, progress, signal);
      drawn = { ...drawn, measured };
      show(true);
      return tellLeft(measured);
    },
    closed,
    false
  );
  const byRank = makeButton("locksmith-copy", say("heatRank"), () => show(false));
  const wantEnergy = () => (drawn.measured ? show(true) : void measuring.start());
  const byEnergyButton = makeButton("locksmith-copy", say("heatEnergy"), wantEnergy);
  byEnergyButton.title = say("heatEnergyHint");
  const choice = make("div", "locksmith-choice", say("heatBy"), byRank, byEnergyButton, measuring.element);
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", say("heatBy"));
  show(false);
  return make("div", "", ...(file ? [choice] : []), maps);
}
