import { render } from "preact";
import { listen } from "./keys.js";
import { Shell } from "./shell.jsx";
import { setTheme, theme } from "./theme.js";

setTheme(theme());
listen();
render(<Shell />, document.getElementById("app"));
