package remembrandt.plugin;

import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.elasticsearch.Build;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;

/** What the server's jar lacks and the distribution brings as a module: {@code GET /}, which clients ask first. */
public final class MissingPartsPlugin extends Plugin implements ActionPlugin {
    @Override
    public Collection<RestHandler> getRestHandlers(
        RestHandlersServices services, Supplier<DiscoveryNodes> nodes, Predicate<NodeFeature> hasFeature) {
        return List.of(new RootHandler(nodes));
    }

    private static final class RootHandler extends BaseRestHandler {
        private final Supplier<DiscoveryNodes> nodes;

        RootHandler(Supplier<DiscoveryNodes> nodes) {
            this.nodes = nodes;
        }

        @Override
        public String getName() {
            return "root";
        }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            Map<String, Object> version = Map.of("number", Build.current().version(), "build_hash", Build.current().hash(),
                "build_flavor", "default", "build_type", "unknown", "lucene_version", org.apache.lucene.util.Version.LATEST.toString());
            Map<String, Object> body = Map.of("name", nodes.get().getLocalNode().getName(), "cluster_name", "remembrandt-development",
                "version", version, "tagline", "You Know, for Search");
            return channel -> channel.sendResponse(new RestResponse(RestStatus.OK, channel.newBuilder().map(body)));
        }
    }
}
