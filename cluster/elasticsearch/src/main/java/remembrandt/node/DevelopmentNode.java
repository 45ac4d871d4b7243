package remembrandt.node;

import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.Version;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * One Elasticsearch node on 127.0.0.1, without security: for development and tests only.
 * Arguments: home folder (lib/, modules/), data folder, HTTP port, then settings as key=value.
 */
public final class DevelopmentNode {
    public static void main(String[] args) {
        try {
            run(Path.of(args[0]).toAbsolutePath(), Path.of(args[1]).toAbsolutePath(), args[2], Arrays.copyOfRange(args, 3, args.length));
        } catch (Throwable e) { // without the exit, the node's own threads would keep the process alive
            e.printStackTrace();
            System.exit(1);
        }
    }

    private static void run(Path home, Path data, String port, String[] extra) throws Exception {
        Path modules = home.resolve("modules");
        describe(modules.resolve("transport-netty4"), "org.elasticsearch.transport.netty4.Netty4Plugin");
        describe(modules.resolve("remembrandt"), "remembrandt.plugin.MissingPartsPlugin");
        Settings settings = settings(home, data, port, extra);
        LogConfigurator.configureWithoutConfig(settings);
        LogConfigurator.configureESLogging();
        Environment environment = new Environment(settings, Files.createDirectories(data.resolve("config")));
        Node node = new Node(environment, PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(modules, true), Set.of(), Map.of(), false));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node)));
        node.start();
        System.out.println("ready: http://127.0.0.1:" + port);
        Thread.currentThread().join();
    }

    private static Settings settings(Path home, Path data, String port, String[] extra) {
        Settings.Builder settings = Settings.builder()
            .put("path.home", home).put("path.data", data.resolve("data")).put("path.logs", data.resolve("logs"))
            .put("cluster.name", "remembrandt-development").put("node.name", "development-0").put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1").put("http.port", port).put("transport.port", "0")
            .put("cluster.routing.allocation.disk.threshold_enabled", false).put("logger.level", "WARN");
        for (String setting : extra) {
            String[] parts = setting.split("=", 2);
            settings.put(parts[0], parts[1]);
        }
        return settings.build();
    }

    private static void close(Node node) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(20, TimeUnit.SECONDS);
        } catch (Exception e) {
            e.printStackTrace();
        }
    }

    /** The jars' own descriptors name a Java module; a server on the class path needs one that does not. */
    private static void describe(Path module, String className) throws Exception {
        String name = module.getFileName().toString();
        Path draft = Files.createTempFile(module.getParent().getParent(), name, ".tmp");
        Files.writeString(draft, String.join("\n", "name=" + name, "description=" + name, "classname=" + className,
            "java.version=21", "version=" + Version.CURRENT, "elasticsearch.version=" + Version.CURRENT, ""));
        Files.move(draft, module.resolve("plugin-descriptor.properties"), StandardCopyOption.ATOMIC_MOVE);
    }
}
