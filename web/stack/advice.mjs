/** Offers in a row the strength that another tool keeps beside its file; it is never taken unasked. */

import { adoptStyle, makeButton } from "../shared/dom.mjs";
import { folderAndTitle } from "./rows.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

await adoptStyle("./advice.css", import.meta.url); // the offer is never seen without its look

/** @param {import("./row.mjs").StackRow} row */
export function advise(row) {
  if (row.advise) return;
  const button = makeButton("locksmith-stack-advice", "", () => {
    if (row.advised) row.orders.change(row.index, { ...row.row, strength: row.advised.value }, true);
    row.strength.element.focus({ preventScroll: true }); // the button is gone
  });
  row.strength.element.before(button);
  row.advise = () => {
    button.hidden = !row.advised || row.advised.value === row.row.strength;
    if (!row.advised) return;
    const { value, file } = row.advised;
    button.textContent = `${value}?`;
    button.title = say("stackAdviceHint", { value, file });
    button.setAttribute("aria-label", say("stackAdvice", { value, file: folderAndTitle(row.row.name)[1] }));
  };
  row.advise();
}
