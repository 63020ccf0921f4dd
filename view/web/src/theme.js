// Light, dark or as the system has it. The choice is kept in localStorage, where that is allowed.

const NAME = "soundrl-theme";
export const THEMES = ["auto", "light", "dark"];

function read() {
  try {
    return localStorage.getItem(NAME);
  } catch (error) {
    if (error instanceof DOMException) return null; // storage is switched off: the choice lasts as long as the page
    throw error;
  }
}

export function theme() {
  const kept = document.documentElement.dataset.theme || read();
  return THEMES.includes(kept) ? kept : "auto";
}

export function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem(NAME, name);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}
