/** Offers, over the canvas, to replace the loaders of a workflow whose packs are not installed. */

import { adoptStyle, make, makeButton } from "../shared/dom.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

await adoptStyle("./offer.css", import.meta.url); // the offer is never seen without its look

/** @type {HTMLElement | undefined} */
let shown;

/** Take the offer away, for another workflow is open. */
export function withdraw() {
  shown?.remove();
  shown = undefined;
}

/**
 * @param {number} count of loaders that are missing
 * @param {() => Promise<void>} replace
 */
export function offerToReplace(count, replace) {
  withdraw();
  const accept = makeButton("locksmith-offer-accept", say("swapAccept"), () => {
    withdraw();
    void replace();
  });
  const dismiss = makeButton("locksmith-icon pi pi-times", "", withdraw);
  dismiss.title = dismiss.ariaLabel = say("swapDismiss");
  const words = make("span", "", make("b", "", say("swapMissing", { count })), " ", say("swapOffer"));
  shown = make("div", "locksmith-offer", words, accept, dismiss);
  shown.setAttribute("role", "status");
  shown.setAttribute("aria-label", say("swapMissing", { count }));
  document.body.append(shown);
}
