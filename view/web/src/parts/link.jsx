import { format } from "../route.js";

/** A link to a page: `<Link to={{page: "run", key}}>small</Link>`; `row` makes it one that j and k step to. */
export function Link({ to, row = false, children, ...rest }) {
  return (
    <a href={format(to)} data-row={row ? "" : undefined} {...rest}>
      {children}
    </a>
  );
}
