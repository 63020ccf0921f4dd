// KaTeX as MathML: a chunk of its own, loaded when mathematics is first shown. Built from KaTeX's sources without its HTML half.
import buildMathML from "../node_modules/katex/src/buildMathML.ts";
import Options from "../node_modules/katex/src/Options.ts";
import ParseError from "../node_modules/katex/src/ParseError.ts";
import parseTree from "../node_modules/katex/src/parseTree.ts";
import Settings from "../node_modules/katex/src/Settings.ts";
import Style from "../node_modules/katex/src/Style.ts";

/** The page's policy forbids style attributes, also those that a script sets; element.style is allowed, so styles wait as data. */
function setStylesAside(node) {
  if (node.attributes && node.attributes.style !== undefined) {
    node.attributes["data-style"] = node.attributes.style;
    delete node.attributes.style;
  }
  for (const child of node.children || []) setStylesAside(child);
}

/**
 * Draws a formula into an element as MathML.
 *
 * @param {Element} element emptied first
 * @param {string} source LaTeX without its dollar signs
 * @param {boolean} display as a block of its own
 * @returns {string} "" or, in one line, why the source does not parse; the element then shows nothing
 */
export function draw(element, source, display) {
  element.textContent = "";
  const settings = new Settings({
    displayMode: display,
    output: "mathml",
    trust: false,
    strict: false,
    maxExpand: 200,
    maxSize: 10,
    throwOnError: true,
  });
  let tree;
  try {
    const options = new Options({
      style: display ? Style.DISPLAY : Style.TEXT,
      maxSize: settings.maxSize,
      minRuleThickness: settings.minRuleThickness,
      strict: settings.strict,
    });
    tree = buildMathML(parseTree(source, settings), source, options, display, true);
  } catch (error) {
    // A RangeError is a formula nested deeper than the stack.
    if (error instanceof RangeError) return "nested too deeply";
    if (error instanceof ParseError) return String(error.message).split("\n")[0];
    throw error;
  }
  setStylesAside(tree);
  const drawn = tree.toNode();
  for (const styled of drawn.querySelectorAll("[data-style]")) {
    styled.style.cssText = styled.dataset.style;
    delete styled.dataset.style;
  }
  element.appendChild(drawn);
  return "";
}
