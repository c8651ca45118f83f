/** The tab of the sidebar that shows every LoRA in the folders. */

import { app } from "../../scripts/app.js";
import { readStyle } from "./dom.js";
import { say } from "./words.js";

const TAB = "loralocksmith.library";

/** @type {Promise<{shelf: import("./library_shelf.mjs").Shelf, make: () => import("./library_view.mjs").LibraryView}> | undefined} */
let page;
/** @type {import("./library_view.mjs").LibraryView | undefined} the page while it is open */
let view;
let planned = 0;
/** @type {HTMLElement | undefined} where the page is, or will be once it is loaded */
let home;

function update() {
  planned = 0;
  view?.update();
}

/**
 * The front end calls this again whenever it draws the place anew, which may still hold another tab's page.
 *
 * @param {HTMLElement} place
 */
async function open(place) {
  home = place;
  const { shelf, make } = await loadPage();
  if (home !== place || (view && view.element.parentNode === place)) return;
  view?.end();
  view = make();
  place.replaceChildren(view.element);
  view.update();
  void shelf.open();
}

async function close() {
  home = undefined;
  view?.end();
  view = undefined;
  (await loadPage()).shelf.stop();
}

/** All that only the open page needs: the front end itself loads only files that end with .js. */
function loadPage() {
  return (page ??= makePage());
}

async function makePage() {
  const [{ LibraryView }, { Shelf }, style] = await Promise.all([
    import("./library_view.mjs"),
    import("./library_shelf.mjs"),
    readStyle("./library.css"),
  ]);
  const shelf = new Shelf(() => (planned ||= requestAnimationFrame(update)));
  return { shelf, make: () => new LibraryView(shelf, style) };
}

app.registerExtension({
  name: TAB,

  setup() {
    const manager = /** @type {any} */ (app.extensionManager);
    (manager.sidebarTab ?? manager).registerSidebarTab({
      id: TAB,
      icon: "icon-[comfy--lora-loader]",
      title: say("library"),
      label: say("libraryLabel"),
      tooltip: say("library"),
      type: "custom",
      render: (/** @type {HTMLElement} */ place) => void open(place),
      destroy: () => void close(),
    });
  },

  /** After the list of files was read anew. */
  refreshComboInNodes() {
    if (view?.element.isConnected) void loadPage().then(({ shelf }) => shelf.refresh());
  },
});
