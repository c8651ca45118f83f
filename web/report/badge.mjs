/** The badge of what a run told, for what is loaded after one. */

import { make } from "../shared/dom.mjs";
import { shortly } from "./outcome.mjs";
import { say } from "../i18n/words.mjs";

/** @typedef {import("./outcome.mjs").Outcome} Outcome */

/**
 * The badge of an outcome; hidden where nothing was counted.
 *
 * @param {Outcome | null} outcome
 * @returns {HTMLElement}
 */
export function makeBadge(outcome) {
  const badge = make("span", "locksmith-badge");
  badge.hidden = !outcome?.state;
  if (!outcome?.state) return badge;
  badge.classList.add(`locksmith-${outcome.state}`);
  badge.textContent = shortly(outcome);
  badge.setAttribute("role", "img");
  const counted = say("panelModulesLoad", { placed: outcome.placed, total: outcome.total });
  const [caution = ""] = outcome.cautions;
  badge.setAttribute("aria-label", [counted, outcome.mismatch && say("panelWrongBase"), caution].filter(Boolean).join(", "));
  badge.title = [caution, outcome.verdict].filter(Boolean).join("\n");
  return badge;
}
