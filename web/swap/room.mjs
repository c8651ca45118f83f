/** Makes room in a saved graph for nodes that became higher: what lies below them moves down, column by column. */

/**
 * A node that was changed: how much higher it is now, how wide it must be, and how much higher a panel will make it.
 *
 * @typedef {{height: number, width: number, panel: number}} Grown
 */

/**
 * What takes place in a graph, in its units. `shift`: how far down it moves; `growth`: how much higher it becomes.
 *
 * @typedef {{left: number, right: number, top: number, bottom: number, shift: number, growth: number, isFixed: boolean,
 *            members: Block[], move: (block: Block) => void}} Block
 */

const TITLE = 30; // above a node's place
const MAX_GAP = 40; // that is kept between what moves and what moves it
const HALF_REROUTE = 10;
const MAX_ROUNDS = 100;

/**
 * @param {any} graph as saved; is changed
 * @param {Map<any, Grown>} grown nodes of it that were changed
 * @param {number} leastWidth of nodes when they are drawn
 */
export function makeRoom(graph, grown, leastWidth) {
  if (![...grown.values()].some(({ height, panel }) => height + panel > 0)) return;
  const nodes = graph.nodes.map((/** @type {any} */ node) => blockOfNode(node, grown.get(node), leastWidth));
  const reroutes = (graph.reroutes ?? graph.extra?.reroutes ?? []).map(blockOfReroute);
  const groups = (graph.groups ?? []).map(blockOfGroup);
  for (const group of groups) gather(group, [...nodes, ...reroutes, ...groups]);
  const pairs = pairsOf([...nodes, ...groups], [...nodes, ...reroutes, ...groups]);
  for (let round = 0; round < MAX_ROUNDS && settle(pairs, groups); round += 1);
  for (const block of [...nodes, ...reroutes, ...groups]) block.move(block);
}

/**
 * @param {any} node
 * @param {Grown | undefined} grown
 * @param {number} leastWidth
 * @returns {Block}
 */
function blockOfNode(node, grown, leastWidth) {
  const [x, y, width, height] = [node.pos[0], node.pos[1], node.size[0], node.size[1]].map(Number);
  const isCollapsed = Boolean(node.flags?.collapsed);
  const growth = isCollapsed || !grown ? 0 : Math.max(0, grown.height + grown.panel);
  const bottom = isCollapsed ? y : y + height - (grown?.height ?? 0); // as it was
  const move = (/** @type {Block} */ { shift }) => void (shift && (node.pos[1] = y + shift));
  return block(x, Math.max(width, leastWidth, grown?.width ?? 0), y - TITLE, Math.max(bottom, y), growth, Boolean(node.flags?.pinned), move);
}

/**
 * @param {any} reroute
 * @returns {Block}
 */
function blockOfReroute({ pos }) {
  const [x, y] = [Number(pos[0]), Number(pos[1])];
  const move = (/** @type {Block} */ { shift }) => void (shift && (pos[1] = y + shift));
  return block(x - HALF_REROUTE, 2 * HALF_REROUTE, y - HALF_REROUTE, y + HALF_REROUTE, 0, false, move);
}

/**
 * @param {any} group
 * @returns {Block}
 */
function blockOfGroup({ bounding, flags }) {
  const [x, y, width, height] = [0, 1, 2, 3].map((part) => Number(bounding[part]));
  return block(x, width, y, y + height, 0, Boolean(flags?.pinned), ({ shift, growth }) => {
    if (shift) bounding[1] = y + shift;
    if (growth) bounding[3] = height + growth;
  });
}

/**
 * @param {number} left
 * @param {number} width
 * @param {number} top
 * @param {number} bottom
 * @param {number} growth
 * @param {boolean} isFixed
 * @param {(block: Block) => void} move
 * @returns {Block}
 */
function block(left, width, top, bottom, growth, isFixed, move) {
  return { left, right: left + width, top, bottom, shift: 0, growth, isFixed, members: [], move };
}

/**
 * Note what is in a group, as the front end sees it: by the middle. A group stays where something pinned is in it.
 *
 * @param {Block} group
 * @param {Block[]} blocks
 */
function gather(group, blocks) {
  group.members = blocks.filter((other) => {
    const [x, y] = [(other.left + other.right) / 2, (other.top + other.bottom) / 2];
    const isInside = x > group.left && x < group.right && y > group.top && y < group.bottom;
    return isInside && other !== group && other.bottom - other.top <= group.bottom - group.top;
  });
  group.isFixed ||= group.members.some(({ isFixed }) => isFixed);
}

/**
 * Which blocks stand above which others, and how far apart they stay.
 *
 * @param {Block[]} uppers
 * @param {Block[]} lowers
 */
function pairsOf(uppers, lowers) {
  const pairs = [];
  for (const upper of uppers) {
    for (const lower of lowers) {
      const gap = lower.top - upper.bottom;
      const isBelow = lower !== upper && gap > -TITLE && lower.top > upper.top;
      const isSameColumn = Math.min(upper.right, lower.right) > Math.max(upper.left, lower.left);
      const isInside = upper.members.includes(lower) || lower.members.includes(upper);
      if (isBelow && isSameColumn && !isInside && !lower.isFixed) pairs.push({ upper, lower, gap: Math.min(gap, MAX_GAP) });
    }
  }
  return pairs;
}

/**
 * Move what is not far enough below, and what is in groups that move; make groups as high as what is in them needs.
 *
 * @param {ReturnType<typeof pairsOf>} pairs
 * @param {Block[]} groups
 * @returns {boolean} whether anything changed
 */
function settle(pairs, groups) {
  let isChanged = false;
  const raise = (/** @type {Block} */ one, /** @type {"shift" | "growth"} */ part, /** @type {number} */ value) => {
    if (value <= one[part]) return;
    one[part] = value;
    isChanged = true;
  };
  for (const { upper, lower, gap } of pairs) raise(lower, "shift", upper.bottom + upper.shift + upper.growth + gap - lower.top);
  for (const group of groups) {
    for (const member of group.members) if (!member.isFixed) raise(member, "shift", group.shift);
    const lowest = Math.max(...group.members.map(({ bottom }) => bottom));
    const edge = Math.max(0, group.bottom - lowest);
    for (const { bottom, shift, growth } of group.members) {
      if (shift + growth > group.shift) raise(group, "growth", bottom + shift + growth + Math.min(edge, MAX_GAP) - group.bottom - group.shift);
    }
  }
  return isChanged;
}
