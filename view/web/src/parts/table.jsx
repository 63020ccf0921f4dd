import { NONE } from "./numbers.js";

function compare(a, b) {
  const none = (value) => value === null || value === undefined || value === "";
  if (none(a) || none(b)) return none(a) - none(b); // what is not recorded stands last, whichever way is sorted
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

/**
 * Rows in the order of a column.
 *
 * @param {Object[]} rows
 * @param {{name: string, value?: function(Object): any}[]} columns
 * @param {string} sort a column's name, "-name" for the other way; "" or an unknown one: as they come
 */
export function sorted(rows, columns, sort) {
  const down = sort.startsWith("-");
  const column = columns.find((one) => one.name === sort.replace(/^-/, ""));
  if (!column) return rows;
  const value = column.value || ((row) => row[column.name]);
  return [...rows].sort((one, other) => {
    const a = value(one);
    const b = value(other);
    const none = (each) => each === null || each === undefined || each === "";
    return none(a) || none(b) || !down ? compare(a, b) : compare(b, a);
  });
}

/**
 * A table in a box of its own that scrolls where it is too wide; with `cards` it turns into cards on a narrow screen.
 *
 * @param {{name: string, title: string, show?: function(Object): any, value?: function(Object): any, number?: boolean, head?: boolean,
 *   hint?: string}[]} columns `head` marks the column that names the row; `value` is what is sorted by
 * @param {{rows: Object[], id: function(Object): string, caption: string, sort?: string, onSort?: function(string): void}} props
 *   with `onSort` headings are buttons; a column that sorts down first says so by `down: true`
 */
export function Table({ columns, rows, id, caption, sort = "", onSort, cards = false, hideCaption = false, empty = "nothing" }) {
  return (
    <div class="table-box" role="region" aria-label={caption} tabIndex={0}>
      <table class={cards ? "cards" : ""}>
        <caption class={hideCaption ? "unseen" : ""}>{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <Heading key={column.name} column={column} sort={sort} onSort={onSort} />
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, i) => (
            <tr key={id ? id(row) : i}>
              {columns.map((column) => (
                <Field key={column.name} column={column} row={row} />
              ))}
            </tr>
          ))}
          {rows.length === 0 && (
            <tr>
              <td colSpan={columns.length} class="quiet">
                {empty}
              </td>
            </tr>
          )}
        </tbody>
      </table>
    </div>
  );
}

function Heading({ column, sort, onSort }) {
  const by = sort.replace(/^-/, "") === column.name;
  const down = by && sort.startsWith("-");
  const direction = by ? (down ? "descending" : "ascending") : undefined;
  const next = by ? (down ? column.name : `-${column.name}`) : column.down ? `-${column.name}` : column.name;
  const sortable = onSort && column.sortable !== false;
  return (
    <th scope="col" class={column.number ? "number" : ""} aria-sort={sortable ? direction : undefined} title={column.hint}>
      {sortable ? (
        <button type="button" class="heading" onClick={() => onSort(next)}>
          {column.title}
          <span aria-hidden="true">{by ? (down ? " ↓" : " ↑") : ""}</span>
        </button>
      ) : (
        column.title
      )}
    </th>
  );
}

function Field({ column, row }) {
  const shown = column.show ? column.show(row) : row[column.name];
  const inner = shown === null || shown === undefined ? NONE : shown;
  const kind = column.number ? "number" : "";
  return column.head ? (
    <th scope="row" class={kind} data-title={column.title}>
      {inner}
    </th>
  ) : (
    <td class={kind} data-title={column.title}>
      {inner}
    </td>
  );
}
