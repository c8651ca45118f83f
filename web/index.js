/** What the host loads of this pack: has each part of the front end register itself. All else is `.mjs`, which the host leaves alone. */

import { register as registerEvery } from "./every/every.mjs";
import { register as registerFold } from "./fold/fold.mjs";
import { register as registerLibrary } from "./library/library.mjs";
import { register as registerPreviews } from "./preview/previews.mjs";
import { register as registerReports } from "./report/report.mjs";
import { register as registerStack } from "./stack/stack.mjs";
import { register as registerSwap } from "./swap/swap.mjs";

registerFold();
registerPreviews();
registerReports();
registerStack();
registerLibrary();
registerSwap();
registerEvery();
