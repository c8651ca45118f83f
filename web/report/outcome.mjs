/** Reads what a run told of a file, as the loader's report or the inspection has it, into what the panels show. */

import { say, tell, tellAll, translationsOf } from "../i18n/words.mjs";

/** @typedef {"good" | "part" | "bad"} State */

/**
 * What a run told, its sentences in the front end's language. `state` is "" where nothing was counted; `inspection` holds the file's own facts where they were told.
 *
 * @typedef {object} Outcome
 * @property {string} file as the loras folders list it; "" where it is none of theirs
 * @property {string} verdict
 * @property {string} remedy what to do about what has no effect; "" where all is right
 * @property {number} placed modules
 * @property {number} total modules
 * @property {State | ""} state
 * @property {string} mismatch
 * @property {string} lacking
 * @property {string[]} gains
 * @property {string[]} notes
 * @property {string[]} stockFails why the stock loader raises on the file, or on which file of a stack and why
 * @property {string[]} cautions what makes it doubtful that the file comes out as trained
 * @property {string} family
 * @property {string} trainer
 * @property {boolean} isGuessed whether names alone speak for the trainer
 * @property {number | null} stock how many modules the stock loader would load; null where that is not told
 * @property {number} files of a stack, 0 for others
 * @property {string} strength where it comes from
 * @property {string} acts beside the layers or in the weights, and why, where *mode* left that open
 * @property {[string, number][]} categories what became of keys, and of how many
 * @property {{category: string, name: string, keys: number, reason: string}[]} patterns
 * @property {import("./heat_map.mjs").Network[]} trained
 * @property {string[]} untrained
 * @property {import("./heat_map.mjs").LayerWeights} layerWeights
 * @property {any} inspection
 * @property {import("../i18n/words.mjs").Translations} translations of what `inspection` says
 */

/**
 * @param {any} output of a node
 * @returns {Outcome | null}
 */
export function outcomeOf(output) {
  let told;
  try {
    told = JSON.parse(output.report_json[0]);
  } catch {
    return null; // no report of ours
  }
  if (!told || typeof told !== "object") return null;
  const translations = translationsOf(output);
  const said = (/** @type {string[]} */ texts) => tellAll(texts, translations);
  const loads = told.loads ?? told;
  const { placed = 0, total = 0 } = loads.modules ?? {};
  const cautions = loads.cautions ?? told.cautions ?? [];
  return {
    file: "",
    verdict: tell(String(told.verdict ?? ""), translations),
    remedy: tell(String(told.remedy ?? ""), translations),
    placed,
    total,
    state: loads.state ?? "",
    mismatch: tell(told.mismatch ?? "", translations),
    lacking: tell(told.lacking ?? "", translations),
    gains: said(loads.gains ?? []),
    notes: said(loads.notes ?? []),
    stockFails: stockFailsOf([loads, ...(told.rows ?? [])], translations),
    cautions: said(cautions),
    family: tell(told.family_title ?? told.family?.title ?? "", translations),
    trainer: tell(told.trainer?.title ?? told.trainer ?? "", translations),
    isGuessed: Boolean(told.trainer_guessed ?? told.trainer?.is_guess),
    stock: loads.stock?.modules ?? null,
    files: told.rows?.length ?? 0,
    strength: tell(told.strength_source ?? "", translations),
    acts: tell(told.acts ?? "", translations),
    categories: Object.entries(loads.categories ?? {}).map(([category, count]) => [tell(category, translations), count]),
    patterns: patternsOf(told).map((pattern) => {
      return { ...pattern, category: tell(pattern.category, translations), reason: tell(pattern.reason, translations) };
    }),
    trained: told.trained ?? [],
    untrained: said(told.untrained_words ?? told.missed?.untrained_words ?? []),
    layerWeights: told.layer_weights ?? {},
    inspection: told.metadata ? told : null,
    translations,
  };
}

/**
 * Why the stock loader raises on the file, or on which file of a stack.
 *
 * @param {any[]} reports
 * @param {import("../i18n/words.mjs").Translations} translations
 * @returns {string[]}
 */
function stockFailsOf(reports, translations) {
  return reports.filter(({ stock }) => stock?.fails).map(({ name, stock }) => {
    const why = tell(stock.fails, translations);
    return name ? `${name}: ${why}` : why;
  });
}

/**
 * @param {any} told
 * @returns {Outcome["patterns"]}
 */
function patternsOf(told) {
  return told.patterns ?? (told.rows ?? []).flatMap((/** @type {any} */ row) => row.patterns ?? []);
}

/** What stands beside the colour, so that nobody has to see it. */
export const SIGNS = { good: "\u2713", part: "!", bad: "\u2717" };

/**
 * Such as "✓ 494/494".
 *
 * @param {{state: State | "", placed: number, total: number, mismatch?: string}} outcome with a state
 */
export function shortly({ state, placed, total, mismatch }) {
  const count = `${SIGNS[state || "bad"]} ${placed}/${total}`;
  return mismatch ? `${count}: ${say("panelWrongBase")}` : count;
}
