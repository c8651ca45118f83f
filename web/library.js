/** The tab of the sidebar that shows every LoRA in the folders. */

import { app } from "../../scripts/app.js";
import { readStyle } from "./dom.js";
import { Shelf } from "./library_shelf.js";
import { LibraryView } from "./library_view.js";
import { say } from "./words.js";

const TAB = "loralocksmith.library";
/** @type {LibraryView | undefined} the page while it is open */
let view;
let style = "";
let planned = 0;
const shelf = new Shelf(() => (planned ||= requestAnimationFrame(update)));

function update() {
  planned = 0;
  view?.update();
}

/**
 * The front end calls this again whenever it draws the place anew, which may still hold another tab's page.
 *
 * @param {HTMLElement} place
 */
function open(place) {
  if (view && view.element.parentNode === place) return;
  view?.end();
  view = new LibraryView(shelf, style);
  place.replaceChildren(view.element);
  view.update();
  void shelf.open();
}

function close() {
  shelf.stop();
  view?.end();
  view = undefined;
}

app.registerExtension({
  name: TAB,

  async setup() {
    style = await readStyle("./library.css");
    const manager = /** @type {any} */ (app.extensionManager);
    (manager.sidebarTab ?? manager).registerSidebarTab({
      id: TAB,
      icon: "icon-[comfy--lora-loader]",
      title: say("library"),
      label: say("libraryLabel"),
      tooltip: say("library"),
      type: "custom",
      render: open,
      destroy: close,
    });
  },

  /** After the list of files was read anew. */
  refreshComboInNodes() {
    if (view?.element.isConnected) void shelf.refresh();
  },
});
