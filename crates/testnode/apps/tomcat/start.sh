#!/bin/sh
# Tomcat with its examples and a shop, whose work, logs and temporary files go to /tmp.
mkdir -p /tmp/tomcat/work /tmp/tomcat/logs /tmp/tomcat/temp
home=/usr/share/tomcat11
exec /usr/bin/java -Xms256m -Xmx640m -XX:+UseSerialGC -XX:CICompilerCount=2 \
    -classpath "$home/bin/bootstrap.jar:$home/bin/tomcat-juli.jar" \
    -Dcatalina.home="$home" -Dcatalina.base=/srv/app -Djava.io.tmpdir=/tmp/tomcat/temp \
    -Djava.util.logging.config.file=/srv/app/conf/logging.properties \
    -Djava.util.logging.manager=org.apache.juli.ClassLoaderLogManager \
    org.apache.catalina.startup.Bootstrap start
