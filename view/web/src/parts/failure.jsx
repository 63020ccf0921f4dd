import { Component } from "preact";
import { Text } from "./text.jsx";

/** Where a page cannot be drawn, says so instead of leaving an empty window; another address (`place`) or the button tries again. */
export class Failure extends Component {
  state = { error: null };

  componentDidCatch(error) {
    console.error(error);
    this.setState({ error });
  }

  componentDidUpdate(before) {
    if (before.place !== this.props.place && this.state.error) this.setState({ error: null });
  }

  render({ children }, { error }) {
    if (!error) return children;
    return (
      <div class="notice bad" role="alert">
        <h1>This page could not be drawn</h1>
        <p>
          <Text>{error.message}</Text>
        </p>
        <p>
          The data are as they were; other pages work. <a href="#/">All runs</a>{" "}
          <button type="button" onClick={() => this.setState({ error: null })}>
            Try again
          </button>
        </p>
      </div>
    );
  }
}
