// Elements of the page, made without any text being read as markup.

/** Make an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Find the first element of a selector. */
export const find = (selector, within = document) => within.querySelector(selector);

/** Find every element of a selector. */
export const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
